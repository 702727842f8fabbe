"""Precision of a context on a GPU: every function in bfloat16, and what the others mean."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES

import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF
from distnn.errors import ContextError

pytestmark = pytest.mark.usefixtures("gpu")

ml_dtypes = pytest.importorskip("ml_dtypes")


def context(precision, type_config="float"):
    return nn.context_scope(nn.Context([f"cudnn:{type_config}"], precision=precision))


def results(case, values, precision):
    """Outputs and gradients of a row, as float64."""
    nn.seed(7)
    with context(precision):
        leaves = [
            nn.Variable.from_numpy_array(v, need_grad=x.grad and not x.integer)
            for x, v in zip(case.inputs, values, strict=True)
        ]
        found = case.call(*leaves)
        found = [y for y in (found if isinstance(found, tuple) else (found,)) if y.size]
        for y in found:
            y.forward()
        floats = [y.d.astype(np.float64) for y in found]
        gradients = []
        if found and found[0].need_grad:
            found[0].backward(1.0)
            gradients = [
                leaf.g.astype(np.float64)
                for leaf, x in zip(leaves, case.inputs, strict=True)
                if x.grad and not x.integer
            ]
    return floats, gradients


def near(found, expected):
    """Within eight roundings to 8 bits of the largest element."""
    scale = max(1.0, float(np.max(np.abs(expected), initial=0)))
    np.testing.assert_allclose(found, expected, rtol=8 * 2.0**-8, atol=8 * 2.0**-8 * scale)


SMOOTH = [
    case
    for case in CASES
    if case.name
    # A rounded input falls on the other side of a step, or picks another element.
    not in {"max", "min", "floor", "ceil", "sign", "one_hot", "top_n_error", "max_pooling"}
    and not any(word in case.name for word in ("equal", "greater", "less", "dropout"))
]


@pytest.mark.parametrize("case", SMOOTH, ids=lambda case: case.id)
def test_every_function_computes_in_bfloat16(case):
    # Inputs that bfloat16 has: both precisions see the same.
    values = [
        v if v.dtype.kind == "i" else v.astype(ml_dtypes.bfloat16).astype(np.float32)
        for v in case.draw()
    ]
    outputs, gradients = results(case, values, "bf16")
    expected, expected_gradients = results(case, values, "highest")
    for found, exact in zip(outputs, expected, strict=True):
        near(found, exact)
    for found, exact in zip(gradients, expected_gradients, strict=True):
        near(found, exact)


def test_bfloat16_results_and_float32_parameters():
    with context("bf16"):
        y = PF.affine(nn.Variable.from_numpy_array(np.ones((2, 3), np.float32)), 4)
        loss = F.mean(y)
        loss.forward()
        loss.backward()
        assert y.data.dtype.name == "bfloat16"
        assert y.d.dtype == np.float32  # as users see it
        for parameter in nn.get_parameters().values():
            assert parameter.data.dtype == parameter.grad.dtype == np.float32
        y.d[...] = 2
        z = y + 1
        z.parent.execute()
        np.testing.assert_array_equal(z.d, np.full((2, 4), 3))


def test_fp16_is_half():
    with context("fp16"):
        y = nn.Variable.from_numpy_array(np.ones(2, np.float32)) * 2
        y.forward()
    assert y.d.dtype == np.float16


def test_precision_and_type_config_that_contradict_each_other():
    with pytest.raises(ContextError, match="precision is 'bf16' but type_config 'double'"):
        nn.set_default_context(nn.Context(["cudnn:double"], precision="bf16"))
