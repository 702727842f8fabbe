"""Rows for affine maps and products of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
from cases_row import Case, Input

import distnn.functions as F


def affine(x: Any, w: Any, b: Any = 0.0, base_axis: int = 1) -> Any:
    """y[m, l] = sum over d of x[m, d] w[d, l] + b[l]; m, d and l may be several indices."""
    batch, depth = x.shape[:base_axis], int(np.prod(x.shape[base_axis:]))
    y = np.zeros((*batch, *w.shape[1:]))
    for m in np.ndindex(batch):
        for d in range(depth):
            y[m] += x[m].reshape(depth)[d] * w[d]
        y[m] += b
    return y


def batch_matmul(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    a = np.swapaxes(a, -1, -2) if transpose_a else a
    b = np.swapaxes(b, -1, -2) if transpose_b else b
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (np.broadcast_to(m, (*batch, *m.shape[-2:])) for m in (a, b))
    y = np.zeros((*batch, a.shape[-2], b.shape[-1]))
    for *n, i, j in np.ndindex(y.shape):
        y[(*n, i, j)] = sum(a[(*n, i, k)] * b[(*n, k, j)] for k in range(a.shape[-1]))
    return y


def product(
    a: tuple[int, ...],
    b: tuple[int, ...],
    note: str,
    ta: bool = False,
    tb: bool = False,
    **options: Any,
) -> Case:
    return Case(
        "batch_matmul",
        lambda x, y: F.batch_matmul(x, y, transpose_a=ta, transpose_b=tb),
        [Input(a), Input(b)],
        lambda x, y: batch_matmul(x, y, ta, tb),
        note,
        **options,
    )


# fmt: off
CASES = [
    Case("affine", F.affine, [Input((3, 4)), Input((4, 5)), Input((5,))], affine,
         empty=[(0, 4), (4, 5), (5,)]),
    Case("affine", F.affine, [Input((3, 4)), Input((4, 5))], affine, "no bias",
         empty=[(0, 4), (4, 5)]),
    Case("affine", F.affine, [Input((2, 3, 4)), Input((12, 5)), Input((5,))], affine,
         "flattened", empty=[(0, 3, 4), (12, 5), (5,)]),
    Case("affine", lambda x, w, b: F.affine(x, w, b, base_axis=2),
         [Input((2, 3, 4)), Input((4, 5)), Input((5,))],
         lambda x, w, b: affine(x, w, b, 2), "base_axis 2", empty=[(2, 0, 4), (4, 5), (5,)]),
    Case("affine", lambda x, w, b: F.affine(x, w, b, base_axis=0),
         [Input((2, 3)), Input((6, 5)), Input((5,))],
         lambda x, w, b: affine(x, w, b, 0), "base_axis 0"),
    Case("affine", F.affine, [Input((3, 4)), Input((4, 2, 3)), Input((2, 3))], affine,
         "several axes of outputs", empty=[(0, 4), (4, 2, 3), (2, 3)]),
    # Larger products are cut into parts: of rows, of columns, of matrices.
    Case("affine", F.affine, [Input((400, 160)), Input((160, 160)), Input((160,))],
         lambda x, w, b: x @ w + b, "many rows", rtol=1e-5, half=False),
    Case("affine", F.affine, [Input((100, 160)), Input((160, 640)), Input((640,))],
         lambda x, w, b: x @ w + b, "many columns", rtol=1e-5, half=False),
    Case("batch_matmul", F.batch_matmul, [Input((10, 100, 100)), Input((10, 100, 100))],
         np.matmul, "many matrices", rtol=1e-5, half=False),
    Case("batch_matmul", F.batch_matmul, [Input((4, 1, 90, 90)), Input((1, 4, 90, 90))],
         np.matmul, "many matrices, broadcast", rtol=1e-5, half=False),
    product((5, 2, 3), (5, 3, 4), "", empty=[(0, 2, 3), (0, 3, 4)]),
    product((5, 3, 2), (5, 3, 4), "transpose a", ta=True),
    product((5, 2, 3), (5, 4, 3), "transpose b", tb=True),
    product((5, 3, 2), (5, 4, 3), "transpose both", ta=True, tb=True),
    product((2, 3), (3, 4), "no batch"),
    product((2, 1, 2, 3), (1, 3, 3, 4), "broadcast batches"),
    product((1, 3, 2), (4, 3, 2), "broadcast and transpose a", ta=True),
    product((4, 2, 3), (1, 2, 3), "broadcast and transpose b", tb=True),
    product((1, 1, 1), (1, 1, 1), "single elements"),
    product((1, 5), (5, 1), "inner product"),
    product((2, 0), (0, 3), "nothing to add up"),
]
# fmt: on
