"""NdArray and Variable: values, dtypes, views, flags, operators and indexing."""

from __future__ import annotations

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F
from distnn.errors import ArgumentError, ClearedError, DtypeError, GraphError, ShapeError


def array(values, dtype=np.float32):
    return nn.NdArray.from_numpy_array(np.asarray(values, dtype))


def variable(values, dtype=np.float32, need_grad=True):
    return nn.Variable.from_numpy_array(np.asarray(values, dtype), need_grad=need_grad)


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (lambda: nn.NdArray(), ()),
        (lambda: nn.NdArray(3), (3,)),
        (lambda: nn.NdArray(2, 3), (2, 3)),
        (lambda: nn.NdArray((2, 3)), (2, 3)),
        (lambda: nn.Variable(), ()),
        (lambda: nn.Variable([2, 3]), (2, 3)),
    ],
)
def test_arrays_are_made_from_shapes_and_start_at_zero(made, shape):
    a = made()
    assert a.shape == shape
    assert a.ndim == len(shape)
    assert a.size == int(np.prod(shape))
    values = a.d if isinstance(a, nn.Variable) else a.data
    assert values.dtype == np.float32
    assert not values.any()


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.int32, np.uint8, np.bool_])
def test_an_assigned_array_keeps_its_dtype(dtype):
    x = nn.Variable((2,))
    x.d = np.array([0, 1], dtype)
    assert x.d.dtype == dtype


def test_a_list_of_ints_becomes_integers_and_a_scalar_keeps_the_dtype():
    x = nn.Variable((2,))
    x.d = [1, 2]
    assert x.d.dtype == np.int64
    x.d = 2.5
    assert x.d.tolist() == [2, 2]
    x.data.cast(np.float32)
    x.d = 2.5
    assert x.d.tolist() == [2.5, 2.5]


def test_functions_read_every_dtype_as_that_of_the_context():
    x = variable([1, 2], np.int64)
    y = x * 0.5
    y.forward()
    assert y.d.dtype == np.float32
    assert y.d.tolist() == [0.5, 1.0]
    x.d[0] = 5  # through the array that was handed out
    y.forward()
    assert y.d.tolist() == [2.5, 1.0]


def test_assignment_broadcasts_and_copies():
    x = nn.Variable((2, 3))
    row = np.array([1.0, 2.0, 3.0], np.float32)
    x.d = row
    row[0] = 9
    assert x.d.tolist() == [[1, 2, 3], [1, 2, 3]]


def test_d_is_live_and_survives_assignment_of_the_same_dtype():
    x = nn.Variable((2,))
    d = x.d
    d[0] = 5
    assert x.d[0] == 5
    x.d = np.array([7, 8], np.float32)
    assert d.tolist() == [7, 8]


def test_read_only_data_cannot_be_written():
    a = array([1.0])
    with pytest.raises(ValueError, match="read-only"):
        a.get_data("r")[0] = 2


def test_fill_and_zero_are_pending_until_somebody_looks():
    a = array([1.0, 2.0])
    memory = a.data
    a.zero()
    assert a.zeroing
    assert memory.tolist() == [1, 2]
    assert a.get_data("r").tolist() == [0, 0]
    assert a.zeroing
    a.fill(3)
    assert not a.zeroing
    assert a.data.tolist() == [3, 3]


def test_views_share_memory():
    a = array(np.arange(6.0))
    table, part = a.view((2, 3)), a.view((3, 2)).narrow(0, 1, 1)
    assert part.data.tolist() == [[2, 3]]
    part.data = np.array([[20, 30]], np.float32)
    assert table.data.tolist() == [[0, 1, 20], [30, 4, 5]]
    part.zero()
    assert a.data.tolist() == [0, 1, 0, 0, 4, 5]


def test_copy_from_and_cast():
    a = array([1.0, 2.0]).copy_from(array([3, 4], np.int64))
    assert a.dtype == np.int64
    assert a.cast(np.float32).tolist() == [3, 4]
    assert a.cast(np.float32, nn.Context()) is None


def test_cleared_data_cannot_be_read_but_written():
    a = array([1.0])
    a.clear()
    assert a.clear_called
    with pytest.raises(ClearedError, match=r"clear\(\) was called"):
        _ = a.data
    a.data = np.array([2.0], np.float32)
    assert a.data[0] == 2


def test_modification_count_grows():
    a = array([1.0])
    before = a.modification_count
    a.data = 2
    assert a.modification_count > before


def test_in_place_operators_of_ndarray_are_those_of_nnabla():
    a = b = array([1.0, 2.0])
    a += array([1.0, 1.0])
    a -= 0.5
    a *= 2
    a /= 3
    assert a is b
    np.testing.assert_allclose(a.data, [1.0, 5 / 3], rtol=1e-6)
    a *= array([2.0, 2.0])
    assert a is not b  # with an array they make a new one


@pytest.mark.parametrize("make", [array, variable])
@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (lambda a, b: a + b, lambda a, b: a + b),
        (lambda a, b: a - b, lambda a, b: a - b),
        (lambda a, b: a * b, lambda a, b: a * b),
        (lambda a, b: a / b, lambda a, b: a / b),
        (lambda a, b: a**b, lambda a, b: a**b),
        (lambda a, b: 2 + a, lambda a, b: 2 + a),
        (lambda a, b: a - 2, lambda a, b: a - 2),
        (lambda a, b: 2 - a, lambda a, b: 2 - a),
        (lambda a, b: a * np.float64(3), lambda a, b: a * 3),
        (lambda a, b: 2 / a, lambda a, b: 2 / a),
        (lambda a, b: a / 4, lambda a, b: a / 4),
        (lambda a, b: a**2, lambda a, b: a**2),
        (lambda a, b: 2**a, lambda a, b: 2**a),
        (lambda a, b: -a, lambda a, b: -a),
        (lambda a, b: +a, lambda a, b: a),
        (lambda a, b: a @ b, lambda a, b: a @ b),
        (lambda a, b: a @ b[0], lambda a, b: a @ b[0]),
        (lambda a, b: a[0] @ b, lambda a, b: a[0] @ b),
        (lambda a, b: a[0] @ b[0], lambda a, b: a[0] @ b[0]),
    ],
)
def test_operators_are_those_of_numpy(make, operation, expected):
    a, b = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[0.5, 1.5], [2.0, 3.0]])
    with nn.auto_forward():
        y = operation(make(a), make(b))
    found = y.d if isinstance(y, nn.Variable) else y.data
    np.testing.assert_allclose(found, expected(a, b), rtol=1e-6)


@pytest.mark.parametrize(
    "key",
    [
        0,
        -1,
        slice(1, None),
        slice(None, None, -1),
        slice(5, 1, -2),
        (0, 1),
        (slice(None), 2),
        (None, 1),
        (..., 0),
        (1, ..., None, slice(0, 2)),
        (slice(1, 3), slice(None), slice(None, None, 2)),
        [1, 0, 1],
        np.array([[0, 3], [2, -1]]),
    ],
    ids=str,
)
def test_indexing_is_that_of_numpy_and_has_gradients(key):
    values = np.arange(48.0).reshape(4, 3, 4)
    x = variable(values)
    y = x[key]
    y.forward()
    np.testing.assert_array_equal(y.d, values[key])
    y.backward(np.arange(1.0, y.size + 1).reshape(y.shape))
    expected = np.zeros_like(values)
    np.add.at(expected, key, np.arange(1.0, y.size + 1).reshape(y.shape))
    np.testing.assert_array_equal(x.g, expected)


@pytest.mark.parametrize("key", [0, slice(None, None, 2), (..., 1), (1, slice(2), None)], ids=str)
def test_a_part_can_be_set_and_has_gradients(key):
    start = np.arange(12.0).reshape(4, 3)
    x, v = variable(start), variable(np.full_like(start[key], -1))
    y = x * 2
    y[key] = v * 3
    loss = F.sum(y * y)
    loss.forward()
    loss.backward()
    expected = 2 * start
    expected[key] = -3
    np.testing.assert_array_equal(y.d, expected)
    dx = 8 * start
    dx[key] = 0
    np.testing.assert_array_equal(x.g, dx)
    np.testing.assert_array_equal(v.g, np.full_like(start[key], -18))
    a = array(start)
    a[key] = 7
    start[key] = 7
    np.testing.assert_array_equal(a.data, start)


def test_len_and_iteration_go_along_axis_0():
    a = array([[1.0, 2.0], [3.0, 4.0]])
    assert len(a) == 2
    assert [row.data.tolist() for row in a] == [[1, 2], [3, 4]]


def test_equality_is_identity_of_the_data():
    x = variable([1.0])
    assert x == x.get_unlinked_variable()
    assert hash(x) == hash(x.get_unlinked_variable())
    assert x != variable([1.0])
    assert x.data == x.data.view((1,))


def test_an_unlinked_variable_stops_backward_and_shares_data_and_gradient():
    x = variable([2.0])
    h = x * 3
    u = h.get_unlinked_variable(need_grad=True)
    y = u * 5
    h.forward()
    y.forward()
    y.backward()
    assert u.g[0] == 5
    assert h.g[0] == 5
    assert x.grad.zeroing
    h.backward(None)
    assert x.g[0] == 15


def test_variables_have_names_ranks_and_parents():
    x = variable([1.0])
    y = F.tanh(x) + x
    assert x.parent is None
    assert (x.rank, y.rank) == (0, 2)
    assert y.parent.info.type_name == "Add2"
    assert [v.parent is None for v in y.parent.inputs] == [False, True]
    assert y.parent.inputs[1] == x
    x.name = "x"
    assert "x" in repr(x)
    assert y.apply(persistent=True, name="y") is y
    assert y.persistent


def test_parent_none_cuts_the_graph():
    x, w = variable([1.0]), variable([3.0])
    h = x * 2
    y = h * w
    y.forward()
    h.parent = None
    y.forward()
    y.backward()
    assert w.g[0] == 2
    assert x.grad.zeroing


def test_reshape_in_a_graph_and_unlinked():
    x = variable(np.arange(6.0))
    y = x.reshape((2, -1))
    assert y.shape == (2, 3)
    u = x.reshape((3, 2), unlink=True)
    u.d = np.zeros((3, 2), np.float32)
    assert not x.d.any()
    assert u.parent is None


def test_reset_shape():
    x = nn.Variable((2, 3))
    x.reset_shape((3, 2))
    assert x.d.shape == (3, 2)
    x.reset_shape((5,), force=True)
    assert x.d.shape == (5,)


def test_results_can_be_computed_into_given_arrays():
    a = array([1.0, -2.0])
    assert F.relu(a, outputs=[a]) is a
    assert a.data.tolist() == [1, 0]
    target = nn.Variable((2,))
    y = F.mul_scalar(variable([1.0, 2.0]), 3, outputs=[target.data])
    y.forward()
    assert target.d.tolist() == [3, 6]


@pytest.mark.parametrize(
    ("call", "kind", "match"),
    [
        (
            lambda x: setattr(x, "d", np.zeros(3)),
            ShapeError,
            r"shape \(3,\) but the array has \(2, 2",
        ),
        (lambda x: setattr(x, "d", np.array(["a"])), DtypeError, "is not a number"),
        (lambda x: setattr(x, "data", np.zeros((2, 2))), DtypeError, r"assign an NdArray"),
        (
            lambda x: setattr(x, "data", nn.NdArray(3)),
            ShapeError,
            r"\(3,\) but the Variable \(2, 2",
        ),
        (lambda x: setattr(x, "need_grad", "yes"), ArgumentError, "'yes'"),
        (lambda x: setattr(x, "parent", 3), DtypeError, "assign a Node or None"),
        (lambda x: nn.Variable((-1,)), ShapeError, "negative length"),
        (lambda x: nn.Variable(3), ShapeError, "pass a sequence of ints"),
        (lambda x: x.apply(nothing=1), ArgumentError, "no attribute 'nothing'"),
        (lambda x: x + np.zeros((2, 2)), DtypeError, "ndarray; pass a Variable"),
        (lambda x: np.zeros((2, 2)) + x, DtypeError, "ndarray; pass a Variable"),
        (lambda x: x + "a", DtypeError, "operand is str"),
        (lambda x: x @ 3, DtypeError, "products with numbers"),
        (lambda x: x @ nn.Variable(), ShapeError, "scalar has no matrix product"),
        (lambda x: x / 0, ZeroDivisionError, "number 0"),
        (lambda x: x[5], IndexError, "index 5 is out of range for axis 0"),
        (lambda x: x[0, 0, 0], ShapeError, "3 indices"),
        (lambda x: x["a"], DtypeError, "index 'a' is str"),
        (lambda x: x[[0.5]], DtypeError, "use ints"),
        (lambda x: bool(x), DtypeError, "no truth value"),
        (lambda x: len(nn.Variable()), DtypeError, "no length"),
        (lambda x: x.reshape((3, 2)), ShapeError, "6 elements but the array has 4"),
        (lambda x: x.reset_shape((5,)), ShapeError, "force=True"),
        (lambda x: (x * 2).reset_shape((4,)), GraphError, "only a leaf"),
        (lambda x: x.data.get_data("x"), ArgumentError, "mode is 'x'"),
        (lambda x: x.data.narrow(1, 0, 1), ArgumentError, "only axis 0"),
        (lambda x: x.data.narrow(0, 1, 5), ShapeError, r"start 1 \+ length 5"),
        (lambda x: x.data.copy_from(nn.NdArray(3)), ShapeError, r"\(3,\) but this array has"),
        (lambda x: x.data.copy_from(3), DtypeError, "arr is int"),
        (lambda x: (x * 2).backward(np.zeros(3)), ShapeError, r"grad has shape \(3,\)"),
        (lambda x: F.relu(np.zeros(3)), DtypeError, r"\[relu\] input x is ndarray"),
        (lambda x: F.relu(x, outputs=[1, 2]), ArgumentError, "outputs has 2 arrays"),
    ],
)
def test_bad_arguments_are_named(call, kind, match):
    with pytest.raises(kind, match=match):
        call(nn.Variable((2, 2)))
