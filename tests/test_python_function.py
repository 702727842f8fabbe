"""PythonFunction: functions in NNabla's form, on every device."""

from __future__ import annotations

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F
from distnn.errors import ClearedError, ShapeError


class SumAndProduct(nn.function.PythonFunction):
    """(a + b, a b)"""

    @property
    def name(self):
        return "SumAndProduct"

    def min_outputs(self):
        return 2

    def setup_impl(self, inputs, outputs):
        for y in outputs:
            y.reset_shape(inputs[0].shape, True)

    def forward_impl(self, inputs, outputs):
        a, b = (x.d for x in inputs)
        outputs[0].d = a + b
        outputs[1].d[...] = a * b

    def backward_impl(self, inputs, outputs, propagate_down, accum):
        (a, b), (ds, dp) = (x.d for x in inputs), (y.g for y in outputs)
        for x, needed, other, add in zip(inputs, propagate_down, (b, a), accum, strict=True):
            if needed:
                gradient = ds + dp * other
                x.g = x.g + gradient if add else gradient

    def grad_depends_output_data(self, i, o):
        return False


def leaves(*shape):
    rng = np.random.RandomState(0)
    values = [rng.uniform(1, 2, shape).astype(np.float32) for _ in range(2)]
    return values, [nn.Variable.from_numpy_array(v, need_grad=True) for v in values]


@pytest.mark.parametrize("shape", [(), (4, 3), (0, 3)])
def test_results_and_gradients(shape):
    (a, b), (x, y) = leaves(*shape)
    total, product = SumAndProduct()(x, y)
    loss = F.sum(total * 3 + product * product)
    loss.forward(clear_no_need_grad=True)
    loss.backward(clear_buffer=True)
    np.testing.assert_allclose(float(loss.d), np.sum(3 * (a + b) + (a * b) ** 2), rtol=1e-5)
    np.testing.assert_allclose(x.g, 3 + 2 * a * b * b, rtol=1e-6)
    np.testing.assert_allclose(y.g, 3 + 2 * a * a * b, rtol=1e-6)


def test_one_result_and_one_gradient_alone():
    (a, b), (x, y) = leaves(2, 3)
    x.need_grad = False
    _, product = SumAndProduct()(x, y)
    product.forward()
    np.testing.assert_array_equal(product.d, a * b)
    product.backward()
    np.testing.assert_array_equal(y.g, a)
    assert x.grad.zeroing


def test_a_call_on_ndarrays_computes_at_once():
    (a, b), _ = leaves(2, 3)
    total, product = SumAndProduct()(*map(nn.NdArray.from_numpy_array, (a, b)))
    np.testing.assert_array_equal(total.data, a + b)
    np.testing.assert_array_equal(product.data, a * b)


def test_results_have_the_dtype_of_the_context():
    class Wide(SumAndProduct):
        def forward_impl(self, inputs, outputs):
            for y in outputs:
                y.d = np.full(y.shape, 1 / 3)

    _, (x, y) = leaves(2)
    for result in Wide()(x, y):
        result.forward()
        assert result.d.dtype == np.float32
        np.testing.assert_array_equal(result.d, np.float32(1 / 3))


def test_a_result_of_another_shape_is_an_error():
    class Longer(SumAndProduct):
        def forward_impl(self, inputs, outputs):
            outputs[0].reset_shape((3,), True)

    _, (x, y) = leaves(2)
    total, _ = Longer()(x, y)
    with pytest.raises(ShapeError, match=r"changed an output from \(2,\) to \(3,\)"):
        total.forward()


def test_what_a_gradient_does_not_depend_on_cannot_be_read():
    class Greedy(SumAndProduct):
        def backward_impl(self, inputs, outputs, propagate_down, accum):
            outputs[0].d  # noqa: B018

    _, (x, y) = leaves(2)
    total, _ = Greedy()(x, y)
    total.forward()
    with pytest.raises(ClearedError):
        total.backward()
