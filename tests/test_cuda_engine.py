"""The engine on a GPU: where values lie, what users read and write, errors found on the device."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S
from distnn.errors import ArgumentError, ContextError, DeviceMemoryError, LabelError
from distnn.function import Function

pytestmark = pytest.mark.usefixtures("gpu")


def cupy():
    import cupy

    return cupy


def on_device(array: nn.NdArray) -> bool:
    return isinstance(array._storage.array, cupy().ndarray)


def leaf(values, need_grad=True):
    return nn.Variable.from_numpy_array(np.asarray(values, np.float32), need_grad=need_grad)


# -- where values lie, and who sees whose writes ----------------------------------------------


def test_results_and_parameters_lie_on_the_device():
    y = PF.affine(leaf(np.ones((2, 3))), 4)
    y.forward()
    assert on_device(y.data)
    F.sum(y).forward()
    y.backward()
    for parameter in nn.get_parameters().values():
        assert on_device(parameter.data)
        assert on_device(parameter.grad)


def test_d_is_a_numpy_array_that_functions_see_when_they_read_next():
    x = leaf([1, 2])
    y = x * 2
    y.forward()
    y.d[0] = 10  # written on the host
    z = y + 1
    z.parent.execute()
    np.testing.assert_array_equal(z.d, [11, 5])


def test_writes_through_an_array_that_is_still_held_are_seen():
    x = leaf([1, 2])
    y = x * 2
    held = x.d
    y.forward()
    held[...] = [5, 6]
    y.forward()
    np.testing.assert_array_equal(y.d, [10, 12])


def test_a_held_array_of_a_parameter_keeps_its_address_and_is_seen():
    x = leaf(np.eye(2), False)
    y = PF.affine(x, 2, with_bias=False)
    w = nn.get_parameters()["affine/W"]
    address = w.data._storage.array.data.ptr
    w.d[...] = [[1, 2], [3, 4]]
    y.forward()
    np.testing.assert_array_equal(y.d, [[1, 2], [3, 4]])
    held = w.d
    held[0, 0] = 7
    y.forward()
    assert y.d[0, 0] == 7
    assert w.data._storage.array.data.ptr == address


def test_the_copy_on_the_host_goes_when_nobody_holds_it():
    x = leaf([1, 2])
    y = x * 2
    y.forward()
    held = y.d
    assert y.data._storage.host is not None
    del held
    (y + 1).forward()
    assert y.data._storage.host is None


def test_a_solver_sees_what_was_written_on_the_host():
    y = PF.affine(leaf(np.ones((1, 1)), False), 1, with_bias=False)
    solver = S.Sgd(1.0)
    solver.set_parameters(nn.get_parameters())
    w = nn.get_parameters()["affine/W"]
    w.d = 0
    solver.zero_grad()
    y.forward()
    y.backward()
    w.d[...] = 5
    w.g[...] = 2
    solver.update()
    np.testing.assert_array_equal(w.d, [[3]])


def test_read_only_views_change_nothing():
    x = leaf([1, 2])
    y = x * 2
    y.forward()
    version = y.data.modification_count
    seen = y.data.get_data("r")
    assert not seen.flags.writeable
    assert y.data.modification_count == version


def test_labels_keep_their_dtype_on_the_host():
    t = nn.Variable((2, 1))
    t.d = np.array([[0], [1]])
    assert t.d.dtype == np.int64
    loss = F.softmax_cross_entropy(leaf(np.zeros((2, 3))), t)
    loss.forward()
    np.testing.assert_allclose(loss.d, np.log(3) * np.ones((2, 1)), rtol=1e-6)


def test_graphs_over_both_devices():
    x = leaf([1, 2])
    y = x * 3
    with nn.context_scope(nn.Context(["cpu:float"])):
        z = y + 1
        u = y * y
    loss = F.sum(z) + F.sum(u)
    loss.forward()
    x.g = 0
    loss.backward()
    assert not on_device(z.data)
    assert on_device(y.data)
    np.testing.assert_array_equal(x.g, [3 + 18, 3 + 36])


def test_large_batches_go_through_pinned_buffers_and_stay_apart():
    x = nn.Variable((64, 1024))
    y = F.sum(x * 1, axis=1)
    for i in range(8):
        x.d = np.full(x.shape, i, np.float32)
        y.forward()
        np.testing.assert_array_equal(y.d, np.full(64, i * 1024))


def test_cast_and_dtypes_on_the_device():
    with nn.context_scope(nn.Context(["cudnn:half"])):
        y = leaf([1, 2]) * 2
        y.forward()
    assert y.d.dtype == np.float16
    y.data.cast(np.float64)
    assert y.d.dtype == np.float64
    np.testing.assert_array_equal(y.d, [2, 4])


# -- interchange ------------------------------------------------------------------------------


def test_dlpack_and_the_cuda_interface_share_memory():
    y = leaf([1, 2]) * 2
    y.forward()
    assert y.data.__dlpack_device__()[0] == 2
    theirs = cupy().from_dlpack(y.data)
    theirs[0] = 9
    np.testing.assert_array_equal(y.d, [9, 4])
    ours = nn.from_dlpack(theirs)
    assert ours._storage.array.data.ptr == theirs.data.ptr
    pointer, _ = y.data.__cuda_array_interface__["data"]
    assert pointer == y.data._storage.array.data.ptr
    assert not hasattr(y.data, "__array_interface__")


def test_an_array_of_the_device_can_be_assigned():
    x = nn.Variable((2,))
    x.d = cupy().asarray(np.array([3, 4], np.float32))
    y = x * 2
    y.forward()
    np.testing.assert_array_equal(y.d, [6, 8])


# -- errors that kernels find -----------------------------------------------------------------


def wrong_label():
    t = nn.Variable((2, 1))
    t.d = np.array([[0], [5]])
    return F.softmax_cross_entropy(PF.affine(leaf(np.ones((2, 2))), 3), t)


def test_a_label_out_of_range_is_raised_at_the_next_read_with_the_line():
    loss = F.mean(wrong_label())
    loss.forward()  # no error yet
    with pytest.raises(LabelError, match=r"target holds 5 \(1 of 2 .*test_cuda_engine.py, line"):
        print(loss.d)
    loss2 = leaf([1]) + 1
    loss2.forward()
    np.testing.assert_array_equal(loss2.d, [2])  # raised once


def test_parameters_stay_clean():
    loss = F.mean(wrong_label())
    solver = S.Momentum(1.0)
    solver.set_parameters(nn.get_parameters())
    before = {k: p.d.copy() for k, p in nn.get_parameters().items()}
    loss.forward()
    solver.zero_grad()
    loss.backward()
    solver.update()
    with pytest.raises(LabelError):
        print(loss.d)
    for key, parameter in nn.get_parameters().items():
        np.testing.assert_array_equal(parameter.d, before[key])


def test_labels_that_are_no_whole_numbers():
    t = leaf([[0.5], [1]], False)
    loss = F.softmax_cross_entropy(leaf(np.zeros((2, 3))), t)
    with pytest.raises(LabelError, match=r"target holds 0\.5"):
        loss.forward()  # they come from the host: at once
    t = leaf([[0.25], [0.5]], False) * 2
    loss = F.softmax_cross_entropy(leaf(np.zeros((2, 3))), t)
    loss.forward()
    with pytest.raises(LabelError, match=r"target holds 0\.5"):
        print(loss.d)


# -- contexts ---------------------------------------------------------------------------------


def test_a_device_that_is_not_there():
    with pytest.raises(ContextError, match=r"device_id is 99 but this process sees \d+ GPU"):
        nn.set_default_context(nn.Context(["cudnn:float"], device_id=99))
    with pytest.raises(ContextError, match="device_id is 'x'"):
        nn.set_default_context(nn.Context(["cudnn:float"], device_id="x"))


def test_a_precision_that_is_not_known():
    with pytest.raises(
        ContextError, match="precision is 'best'; use one of 'highest', 'high', 'tf32'"
    ):
        nn.set_default_context(nn.Context(["cudnn:float"], precision="best"))


def test_extension_module():
    from distnn.ext_utils import import_extension_module

    module = import_extension_module("cudnn")
    assert module.get_device_count() >= 1
    assert module.get_devices()[0] == "0"
    module.synchronize()
    module.clear_memory_cache()
    assert module.context(type_config="half").backend == ["cudnn:half"]


# -- memory -----------------------------------------------------------------------------------


def test_out_of_memory_says_who_holds_what():
    pool = cupy().get_default_memory_pool()
    x = leaf(np.ones((256, 1024)))
    y = F.tanh(x * 2)
    y.forward()
    pool.free_all_blocks()
    pool.set_limit(size=pool.used_bytes() + 1024 * 1024)
    try:
        with pytest.raises(
            DeviceMemoryError, match=r"4 MiB were asked for.*(Tanh|MulScalar) 1 MiB"
        ):
            F.broadcast(leaf(np.ones((1, 1024, 1))), (1, 1024, 1024)).forward()
    finally:
        pool.set_limit(size=0)


# -- structure --------------------------------------------------------------------------------


def functions(cls=Function):
    for sub in cls.__subclasses__():
        yield sub
        yield from functions(sub)


def parameters(method):
    return [(p.name, p.kind) for p in inspect.signature(method).parameters.values()]


def test_every_twin_has_the_signatures_of_its_function():
    from distnn.twin import twin_class

    found = 0
    for function in functions():
        twin = twin_class(function, "cuda")
        if twin is None:
            continue
        found += 1
        assert parameters(twin.forward) == parameters(function.forward), function
        assert hasattr(twin, "backward") == hasattr(function, "backward"), function
        if hasattr(twin, "backward"):
            assert parameters(twin.backward) == parameters(function.backward), function
    assert found > 10


def test_only_the_cuda_folder_imports_cupy():
    import pathlib

    import distnn

    root = pathlib.Path(distnn.__file__).parent
    importers = {
        path.relative_to(root).parts[0]
        for path in root.rglob("*.py")
        if any(
            line.strip().startswith(("import cupy", "from cupy"))
            for line in path.read_text().splitlines()
        )
    }
    assert importers <= {"cuda"}


def test_what_cannot_be_exported_says_why():
    with pytest.raises(ArgumentError, match="contiguous"):
        nn.from_dlpack(cupy().zeros((4, 4), np.float32)[:, 1:])


# -- gradients that are no array of their own -------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.softmax(x),
        lambda x: F.max_pooling(x, (2, 2)),
        lambda x: F.fused_batch_normalization(x, *[nn.Variable((1, 3, 1, 1)) for _ in range(4)]),
        lambda x: F.max(x, axis=3),
    ],
    ids=["softmax", "max pooling", "batch normalization", "maximum"],
)
@pytest.mark.parametrize("reader", ["mean", "transpose"])
def test_fast_gradients_take_broadcast_and_transposed_ones(function, reader):
    """The gradient of a mean is one number, read everywhere; that of a transpose, a view."""
    values = np.random.RandomState(0).uniform(-1, 1, (2, 3, 4, 4)).astype(np.float32)

    def gradient():
        x = leaf(values)
        x.grad.zero()
        y = function(x)
        if reader == "mean":
            y = F.mean(y, axis=0)
        else:
            y = F.transpose(y, tuple(reversed(range(y.ndim))))
        slope = np.random.RandomState(1).uniform(-1, 1, y.shape)
        y.forward()
        y.backward(slope.astype(np.float32))
        return x.g.copy()

    with nn.context_scope(nn.Context(["cpu:float"])):
        expected = gradient()
    np.testing.assert_allclose(gradient(), expected, rtol=1e-4, atol=1e-6)
