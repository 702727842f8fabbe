"""Rows of the function table in bfloat16 beside the same in float32: for CPU and GPU."""

from __future__ import annotations

import numpy as np
from cases import CASES

import distnn as nn

SMOOTH = [
    case
    for case in CASES
    if case.name
    # A rounded input falls on the other side of a step, or picks another element.
    not in {"max", "min", "floor", "ceil", "sign", "one_hot", "top_n_error", "max_pooling"}
    and not case.name.startswith("reset_")  # their rows hold infinite numbers
    and not any(word in case.name for word in ("equal", "greater", "less", "dropout"))
]


def compare(case, bfloat16, reference, widened):
    """Outputs and gradients of a row in two contexts, on inputs that bfloat16 has.

    Args:
        widened: bfloat16 numbers of float32 ones, in float32.
    """
    values = [v if v.dtype.kind == "i" else widened(v.astype(np.float32)) for v in case.draw()]
    outputs, gradients = results(case, values, bfloat16)
    expected, expected_gradients = results(case, values, reference)
    for found, exact in zip(outputs, expected, strict=True):
        near(found, exact)
    for found, exact in zip(gradients, expected_gradients, strict=True):
        near(found, exact)


def results(case, values, context):
    """Outputs and gradients of a row, as float64."""
    nn.seed(7)
    with nn.context_scope(context):
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
