"""Rows for functions that repeat, turn around, shift, resize and accumulate along axes."""

from __future__ import annotations

from typing import Any

import numpy as np
from cases_row import Case, Input, given

import distnn.functions as F

X = Input((2, 3, 4, 5))


def shift(x: Any, shifts: Any, mode: str = "edge") -> Any:
    """A window into x with wide borders."""
    widths = [(0, 0)] * (x.ndim - len(shifts)) + [(9, 9)] * len(shifts)
    wide = np.pad(x, widths, mode="edge" if mode == "nearest" else "symmetric")
    for axis, by in enumerate(shifts, x.ndim - len(shifts)):
        wide = np.take(wide, np.arange(x.shape[axis]) + 9 - by, axis)
    return wide


def resize(x: Any, sizes: Any, first: int = 2, nearest: bool = False, align: bool = False,
           half: bool = False, nn: bool = False) -> Any:  # fmt: skip
    """Each element of the result by itself, axis by axis."""
    for axis, m in enumerate(sizes, first):
        n = x.shape[axis]
        parts = []
        for i in range(m):
            scale = 0 if m == 1 else (n - 1) / (m - 1) if align else n / m
            place = (
                n / m * (i + 0.5) if nn else max(scale * (i + 0.5) - 0.5, 0) if half else scale * i
            )
            low = min(int(place), n - 1)
            high, weight = min(low + 1, n - 1), 0 if nearest else place - low
            parts.append((1 - weight) * x.take(low, axis) + weight * x.take(high, axis))
        x = np.stack(parts, axis)
    return x


def scan(x: Any, axis: int, exclusive: bool, reverse: bool, product: bool) -> Any:
    y = np.empty(x.shape)
    for i in np.ndindex(x.shape):
        k, n = i[axis], x.shape[axis]
        chosen = range(k + exclusive, n) if reverse else range(k + 1 - exclusive)
        values = [x[(*i[:axis], j, *i[axis + 1 :])] for j in chosen]
        y[i] = np.prod(values) if product else np.sum(values)
    return y


def resized(note: str, sizes: Any, x: Any = X, first: int = 2, **options: bool) -> Case:
    names = {"nearest": "mode", "align": "align_corners", "half": "half_pixel",
             "nn": "half_pixel_for_nn", "last": "channel_last"}  # fmt: skip
    given = {names[k]: "nearest" if k == "nearest" else v for k, v in options.items()}
    options.pop("last", None)
    return Case("interpolate", lambda x: F.interpolate(x, output_size=sizes, **given), [x],
                lambda x: resize(x, sizes, first, **options), note)  # fmt: skip


ZEROS = given([[2.0, 0.0, 3.0, 0.5], [0.0, 0.0, 4.0, 1.5], [0.0, 0.0, 0.0, 1.0], [1.0, 2, 3, 4]])

# fmt: off
CASES = [
    Case("flip", F.flip, [X], lambda x: np.flip(x, -1), empty=[(0, 3, 4, 5)]),
    Case("flip", lambda x: F.flip(x, (1, -1)), [X], lambda x: np.flip(x, (1, 3)), "two axes"),
    *(Case("tile", lambda x, r=reps: F.tile(x, r), [Input((2, 3))],
           lambda x, r=reps: np.tile(x, r), f"reps {reps}")
      for reps in (2, (2, 3), (3, 1), (2, 1, 2), (1, 1))),
    Case("tile", lambda x: F.tile(x, (1, 3)), [Input((2, 3))], lambda x: np.tile(x, (1, 3)),
         "batch", empty=[(0, 3)]),
    Case("unpooling", lambda x: F.unpooling(x, (2, 3)), [X],
         lambda x: x.repeat(2, 2).repeat(3, 3), empty=[(0, 3, 4, 5)]),
    Case("unpooling", lambda x: F.unpooling(x, 2), [X], lambda x: x.repeat(2, 3), "a number"),
    Case("unpooling", lambda x: F.unpooling(x, (2, 3), channel_last=True), [X],
         lambda x: x.repeat(2, 1).repeat(3, 2), "channel_last"),
    *(Case("shift", lambda x, s=by, m=mode: F.shift(x, s, m), [X],
           lambda x, s=by, m=mode: shift(x, s, m), f"{mode} {by}")
      for mode in ("nearest", "reflect") for by in ((1,), (-2, 1), (3, -4), (0, 0))),
    Case("shift", F.shift, [X], lambda x: x, "by nothing", empty=[(0, 3, 4, 5)]),
    Case("interpolate", lambda x: F.interpolate(x, scale=(2, 2)), [X],
         lambda x: resize(x, (8, 10)), empty=[(0, 3, 4, 5)]),
    Case("interpolate", lambda x: F.interpolate(x, scale=(1.5, 0.5)), [X],
         lambda x: resize(x, (6, 2)), "broken factors"),
    resized("same size", (4, 5)),
    resized("one element", (1, 1)),
    resized("align_corners", (7, 3), align=True),
    resized("align_corners to one element", (1, 3), align=True),
    resized("half_pixel", (7, 3), half=True),
    resized("one axis", (7,), first=3),
    resized("three axes, from one element", (5, 6, 2), x=Input((2, 1, 4, 3)), first=1),
    resized("channel_last", (7, 3), x=Input((2, 4, 5, 3)), first=1, last=True),
    resized("nearest", (7, 3), nearest=True),
    resized("nearest, align_corners", (7, 3), nearest=True, align=True),
    resized("nearest, half_pixel", (7, 3), nearest=True, half=True),
    resized("nearest, half_pixel_for_nn", (7, 3), nearest=True, nn=True),
    resized("nearest, same size", (4, 5), nearest=True),
    *(Case(name, lambda x, f=function, a=axis, e=exclusive, r=reverse: f(x, a, e, r),
           [Input((2, 3, 4))],
           lambda x, a=axis, e=exclusive, r=reverse, p=name == "cumprod": scan(x, a, e, r, p),
           f"axis {axis}{', exclusive' * exclusive}{', reverse' * reverse}")
      for name, function in (("cumsum", F.cumsum), ("cumprod", F.cumprod)) for axis in (0, 1, 2)
      for exclusive in (False, True) for reverse in (False, True)),
    *(Case(name, lambda x, f=function: f(x, 1), [Input((2, 3))],
           lambda x, p=name == "cumprod": scan(x, 1, False, False, p), "batch", empty=[(0, 3)])
      for name, function in (("cumsum", F.cumsum), ("cumprod", F.cumprod))),
    *(Case("cumprod", lambda x, e=exclusive, r=reverse: F.cumprod(x, 1, e, r), [ZEROS],
           lambda x, e=exclusive, r=reverse: scan(x, 1, e, r, True),
           f"zeros{', exclusive' * exclusive}{', reverse' * reverse}")
      for exclusive in (False, True) for reverse in (False, True)),
    Case("cumprod", lambda x: F.cumprod(x, 1), [Input((2, 0))], lambda x: x, "empty axis"),
]
# fmt: on
