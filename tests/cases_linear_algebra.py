"""Rows for matrices, warping, and numbers of few bits."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from cases_row import Case, Input, given

import distnn.functions as F

# Far from singular.
MATRICES = given(np.random.RandomState(0).uniform(-1, 1, (2, 3, 3)) + 3 * np.eye(3))


def grid_of(size: tuple[int, ...], align: bool) -> Any:
    """Coordinates of pixels from -1 to 1, x first."""
    axes = [np.array([2 * i / (n - 1) - 1 if align else (2 * i + 1) / n - 1 for i in range(n)])
            for n in size]  # fmt: skip
    return np.stack(np.meshgrid(*axes, indexing="ij")[::-1], -1)


def affine_grid(theta: Any, size: tuple[int, ...], align: bool) -> Any:
    grid = grid_of(size, align)
    ones = np.concatenate((grid, np.ones((*size, 1))), -1)
    return np.einsum("bij,...j->b...i", theta, ones)


def warp(
    x: Any, grid: Any, mode: str = "linear", padding: str = "zero", align: bool = False
) -> Any:
    """Pixel by pixel."""
    size = x.shape[2:]
    y = np.zeros((*x.shape[:2], *grid.shape[1:-1]))
    for b, *o in np.ndindex(grid.shape[:-1]):
        place = []
        for n, g in zip(size, grid[(b, *o)][::-1], strict=True):
            p = (g + 1) / 2 * (n - 1) if align else ((g + 1) * n - 1) / 2
            low, high = (0, n - 1) if align else (-0.5, n - 0.5)
            while padding == "reflect" and not low <= p <= high:
                p = 2 * low - p if p < low else 2 * high - p
            place.append(p if padding == "zero" else min(max(p, 0), n - 1))
        corners = [[(int(np.floor(p + 0.5)), 1)] if mode == "nearest" else
                   [(int(np.floor(p)), 1 - p % 1), (int(np.floor(p)) + 1, p % 1)]
                   for p in place]  # fmt: skip
        for chosen in itertools.product(*corners):
            if all(0 <= i < n for (i, _), n in zip(chosen, size, strict=True)):
                weight = np.prod([w for _, w in chosen])
                y[(b, slice(None), *o)] += weight * x[(b, slice(None), *(i for i, _ in chosen))]
    return y


def near_pixels(*shape: int) -> Input:
    """Coordinates, some beyond the image, whose pixels' numbers are not near a kink."""
    rng = np.random.RandomState(1)
    # In images of 4 pixels an axis: p = 2 g + 1.5 or 1.5 g + 1.5; halves and wholes are kinks.
    values = rng.randint(-14, 15, shape) / 12 + 0.037
    return given(values)


IMAGE, VOLUME = Input((2, 3, 4, 4)), Input((2, 2, 4, 4, 4))


def warped(note: str, x: Input, grid: Input, **options: Any) -> Case:
    names = {"mode": "mode", "padding": "padding_mode", "align": "align_corners"}
    arguments = {names[k]: v for k, v in options.items()}
    return Case("warp_by_grid", lambda x, g: F.warp_by_grid(x, g, **arguments), [x, grid],
                lambda x, g: warp(x, g, **options), note, rtol=1e-5, half=False)  # fmt: skip


def fixed_point(x: Any, low: float, high: float, delta: float = 0.25) -> Any:
    return np.clip(np.sign(x) * np.floor(np.abs(x) / delta + 0.5) * delta, low, high)


def pow2(x: Any, low: float, high: float, sign: bool = True, zero: bool = True) -> Any:
    size = np.clip(2.0 ** np.round(np.log2(np.maximum(np.abs(x), 1e-30))), low, high)
    if zero:
        size = np.where(np.abs(x) < low / np.sqrt(2), 0, size)
    return np.where(x < 0, -size if sign else (0 if zero else low), size)


SCALES = given([[-9.0, -1.3, -0.3, -0.02], [0.02, 0.3, 0.8, 9.0]])
SPECIAL = given([1.0, -2.0, np.inf, -np.inf, np.nan, 0.0])

# fmt: off
CASES = [
    Case("batch_inv", F.batch_inv, [MATRICES], np.linalg.inv, empty=[(0, 3, 3)], rtol=1e-5),
    Case("batch_inv", F.batch_inv, [given([[2.0, 1], [1, 3]])], np.linalg.inv, "one"),
    Case("batch_det", F.batch_det, [MATRICES], np.linalg.det, empty=[(0, 3, 3)], rtol=1e-5),
    Case("batch_logdet", F.batch_logdet, [MATRICES], lambda x: np.log(np.abs(np.linalg.det(x))),
         empty=[(0, 3, 3)], rtol=1e-5),
    *(Case("dot", F.dot, [Input(a), Input(b)], np.dot, f"{a} {b}")
      for a, b in (((3,), (3,)), ((2, 3), (3,)), ((2, 3), (3, 4)), ((5, 2, 3), (3, 4)),
                   ((2, 3), (4, 3, 5)), ((2, 1, 3), (2, 4, 3, 5)), ((), (2, 3)), ((), ()))),
    Case("dot", F.dot, [Input((2, 3)), Input((3, 4))], np.dot, "batch", empty=[(0, 3), (3, 4)]),
    Case("matrix_diag", F.matrix_diag, [Input((2, 3))],
         lambda x: x[..., None] * np.eye(3), empty=[(0, 3)]),
    Case("matrix_diag_part", F.matrix_diag_part, [Input((2, 3, 3))],
         lambda x: np.diagonal(x, axis1=1, axis2=2), empty=[(0, 3, 3)]),
    *(Case("trilu", lambda x, k=k, u=upper: F.trilu(x, k, u), [Input((2, 3, 4))],
           lambda x, k=k, u=upper: (np.triu if u else np.tril)(x, k), f"{k}, {upper}",
           empty=[(0, 3, 4)])
      for k in (-1, 0, 2) for upper in (False, True)),
    Case("eye_like", lambda x: F.eye_like(x, 1), [Input((2, 3, 4)).constant()],
         lambda x: np.broadcast_to(np.eye(3, 4, 1), (2, 3, 4)), empty=[(0, 3, 4)]),
    *(Case("affine_grid", lambda t, a=align, s=size: F.affine_grid(t, s, a),
           [Input((2, len(size), len(size) + 1))],
           lambda t, a=align, s=size: affine_grid(t, s, a), f"{size}, {align}", rtol=5e-6)
      for align in (False, True) for size in ((3, 4), (2, 3, 4))),
    *(warped(f"{mode}, {padding}{', align_corners' * align}", IMAGE,
             near_pixels(2, 3, 5, 2).constant() if mode == "nearest" else near_pixels(2, 3, 5, 2),
             mode=mode, padding=padding, align=align)
      for mode in ("linear", "nearest") for padding in ("zero", "repeat", "reflect")
      for align in (False, True)),
    warped("volume", VOLUME, near_pixels(2, 3, 1, 2, 3)),
    Case("warp_by_grid", lambda x, g: F.warp_by_grid(x, g, channel_last=True),
         [Input((2, 4, 4, 3)), near_pixels(2, 3, 5, 2)],
         lambda x, g: np.moveaxis(warp(np.moveaxis(x, -1, 1), g), 1, -1), "channel_last",
         rtol=1e-5, half=False),
    Case("warp_by_grid", F.warp_by_grid, [IMAGE, near_pixels(2, 3, 5, 2)], warp, "batch",
         empty=[(0, 3, 4, 4), (0, 3, 5, 2)], rtol=1e-5, half=False),
    Case("fixed_point_quantize", lambda x: F.fixed_point_quantize(x, True, 4, 0.25), [SCALES],
         lambda x: fixed_point(x, -1.75, 1.75), "signed",
         slope=lambda x: np.clip(x, -1.75, 1.75), second=False, empty=[(0, 4)]),
    Case("fixed_point_quantize",
         lambda x: F.fixed_point_quantize(x, False, 3, 0.25, ste_fine_grained=False), [SCALES],
         lambda x: fixed_point(x, 0, 1.75), "unsigned", slope=lambda x: x, second=False),
    Case("fixed_point_quantize", lambda x: F.fixed_point_quantize(x, quantize=False), [SCALES],
         lambda x: x, "not at all"),
    Case("pow2_quantize", lambda x: F.pow2_quantize(x, n=4, m=1), [SCALES],
         lambda x: pow2(x, 0.25, 2.0), "signed, zero",
         slope=lambda x: np.where(np.abs(x) > 3, np.sign(x) * 3, x), second=False, empty=[(0, 4)]),
    Case("pow2_quantize", lambda x: F.pow2_quantize(x, False, True, 3, 1), [SCALES],
         lambda x: pow2(x, 0.25, 2.0, False), "unsigned, zero",
         slope=lambda x: np.clip(x, 0, 3), second=False),
    Case("pow2_quantize", lambda x: F.pow2_quantize(x, False, False, 2, 1), [SCALES],
         lambda x: pow2(x, 0.25, 2.0, False, False), "unsigned, no zero",
         slope=lambda x: np.clip(x, 0, 3), second=False),
    Case("pow2_quantize",
         lambda x: F.pow2_quantize(x, True, False, 3, 1, ste_fine_grained=False), [SCALES],
         lambda x: pow2(x, 0.25, 2.0, True, False), "signed, no zero", slope=lambda x: x,
         second=False),
    *(Case(name, function, [Input((2, 3))] * 3, ref, empty=[(0, 3)] * 3)
      for name, function, ref in (("add_n", F.add_n, lambda a, b, c: a + b + c),
                                  ("mul_n", F.mul_n, lambda a, b, c: a * b * c))),
    Case("add_n", F.add_n, [Input((2, 3))], lambda x: x, "of one"),
    Case("mul_n", F.mul_n, [Input((2, 3))], lambda x: x, "of one"),
    Case("isnan", F.isnan, [SPECIAL.constant()], np.isnan, empty=[(0,)]),
    Case("isinf", F.isinf, [SPECIAL.constant()], np.isinf, empty=[(0,)]),
    Case("reset_nan", lambda x: F.reset_nan(x, 3), [SPECIAL.constant()],
         lambda x: np.where(np.isnan(x), 3, x), half=False),
    Case("reset_inf", lambda x: F.reset_inf(x, 3), [SPECIAL.constant()],
         lambda x: np.where(np.isinf(x), 3, x), half=False),
    *(Case(name, function, [Input((2, 3))], lambda x: x, "ordinary numbers", empty=[(0, 3)])
      for name, function in (("reset_nan", F.reset_nan), ("reset_inf", F.reset_inf))),
    Case("epsilon_insensitive_loss", lambda a, b: F.epsilon_insensitive_loss(a, b, 0.5),
         [given([[1.0, -2, 0.3]]), given([[2.2, -1.9, -1.1]])],
         lambda a, b: np.maximum(np.abs(a - b) - 0.5, 0), empty=[(0, 3), (0, 3)]),
    Case("binary_error", F.binary_error, [Input((4, 5), 0, 1).constant()] * 2,
         lambda x, t: (x >= 0.5) != (t >= 0.5), empty=[(0, 5), (0, 5)]),
]
# fmt: on
