"""Precision of a context on a GPU: every function in bfloat16, and what the others mean."""

from __future__ import annotations

import numpy as np
import pytest
from precision import SMOOTH, compare

import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF
from distnn.errors import ContextError

pytestmark = pytest.mark.usefixtures("gpu")

ml_dtypes = pytest.importorskip("ml_dtypes")


def context(precision, type_config="float"):
    return nn.Context([f"cudnn:{type_config}"], precision=precision)


# Each formula rounds: of 120,000 sums some then lie on the other side of relu's kink.
CASES = [case for case in SMOOTH if case.id != "fused_batch_normalization: many vectors"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_function_computes_in_bfloat16(case):
    compare(
        case,
        context("bf16"),
        context("highest"),
        lambda v: v.astype(ml_dtypes.bfloat16).astype(np.float32),
    )


@pytest.mark.parametrize("type_config", ["float", "half"])
def test_bfloat16_results_and_float32_parameters(type_config):
    with nn.context_scope(context("bf16", type_config)):
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
    with nn.context_scope(context("fp16")):
        y = nn.Variable.from_numpy_array(np.ones(2, np.float32)) * 2
        y.forward()
    assert y.d.dtype == np.float16


def test_precision_and_type_config_that_contradict_each_other():
    with pytest.raises(ContextError, match="precision is 'bf16' but type_config 'double'"):
        nn.set_default_context(context("bf16", "double"))


def test_high_is_of_the_cpu():
    with pytest.raises(ContextError, match="'high' is of products on the CPU; on a GPU use"):
        nn.set_default_context(context("high"))
