"""Rows for functions that move values without computing."""

from __future__ import annotations

from typing import Any

import numpy as np
from cases_row import Case, Input

import distnn.functions as F

A = Input((2, 3, 4))
SMALL = Input((3, 4))


def slice_row(note: str, shape: tuple[int, ...], key: Any, *arguments: Any, **options: Any) -> Case:
    """F.slice(x, start, stop, step) is x[key]."""
    return Case(
        "slice", lambda x: F.slice(x, *arguments), [Input(shape)], lambda x: x[key], note, **options
    )


def pad_row(
    note: str, shape: tuple[int, ...], width: Any, mode: str = "constant", value: float = 0
) -> Case:
    """Widths are (before, after) of the last axes, flat."""
    pairs = [(0, 0)] * (len(shape) - len(width) // 2)
    pairs += list(zip(width[::2], width[1::2], strict=True))

    def ref(x: Any) -> Any:
        if mode == "constant":
            return np.pad(x, pairs, constant_values=value)
        for axis, (before, after) in enumerate(pairs):
            n = x.shape[axis]
            places = range(-before, n + after)
            if mode == "repeat":
                sources = [min(max(i, 0), n - 1) for i in places]
            else:
                sources = [bounced(i, n) for i in places]
            x = np.take(x, sources, axis)
        return x

    arguments: dict[str, Any] = {} if mode == "constant" else {"mode": mode}
    if value:
        arguments["constant_value"] = value
    return Case("pad", lambda x: F.pad(x, width, **arguments), [Input(shape)], ref, note)


def bounced(i: int, n: int) -> int:
    """Where a walker on 0 ... n - 1 who turns round at the ends is after |i| steps from 0."""
    place, step = 0, 1
    for _ in range(abs(i) if n > 1 else 0):
        step = -step if not 0 <= place + step < n else step
        place += step
    return place


# fmt: off
CASES = [
    Case("reshape", lambda x: F.reshape(x, (4, 6)), [A], lambda x: x.reshape(4, 6)),
    Case("reshape", lambda x: F.reshape(x, (3, -1)), [A], lambda x: x.reshape(3, 8), "inferred"),
    Case("reshape", lambda x: F.reshape(x, (-1,), inplace=False), [A], lambda x: x.reshape(24),
         "copied"),
    Case("reshape", lambda x: F.reshape(x, ()), [Input((1, 1))], lambda x: x.reshape(()), "number"),
    Case("reshape", lambda x: F.reshape(x, (x.shape[0], 12)), [A], lambda x: x.reshape(2, 12),
         "batch", empty=[(0, 3, 4)]),
    Case("reshape", lambda x: F.relu(F.reshape(x, (6, 4))) * F.reshape(x, (6, 4)),
         [Input((2, 3, 4), away_from=[0])],
         lambda x: np.maximum(x, 0).reshape(6, 4) * x.reshape(6, 4),
         "read by others"),
    *(Case("transpose", lambda x, a=axes: F.transpose(x, a), [A],
           lambda x, a=axes: np.transpose(x, a), f"{axes}",
           empty=[(0, 3, 4)])
      for axes in ((2, 0, 1), (1, 0, 2), (2, 1, 0), (0, 1, 2), (-1, 0, -2))),
    Case("transpose", lambda x: F.transpose(x, ()), [Input(())], lambda x: x, "number"),
    Case("transpose", lambda x: F.transpose(x, (0, 3, 1, 2)), [Input((2, 3, 4, 5))],
         lambda x: np.moveaxis(x, -1, 1), "channels"),
    Case("broadcast", lambda x: F.broadcast(x, (2, 3, 4)), [Input((2, 1, 4))],
         lambda x: np.broadcast_to(x, (2, 3, 4)), empty=None),
    Case("broadcast", lambda x: F.broadcast(x, (2, 3, 4)), [Input((1, 3, 1))],
         lambda x: np.broadcast_to(x, (2, 3, 4)), "several axes"),
    Case("broadcast", lambda x: F.broadcast(x, (2, 3)), [Input((2, 3))], lambda x: x, "none"),
    Case("broadcast", lambda x: F.broadcast(x, (2, 3)), [Input(())],
         lambda x: np.broadcast_to(x, (2, 3)), "number"),
    Case("broadcast", lambda x: F.broadcast(x, (0, 3)), [Input((1, 3))],
         lambda x: np.zeros((0, 3)), "to nothing"),
    slice_row("", (4, 6), np.s_[1:3, 0:6:2], (1, 0), (3, 6), (1, 2), empty=None),
    slice_row("everything", (4, 6), np.s_[:, :]),
    slice_row("last axes only", (2, 4, 6), np.s_[..., 1:5], (1,), (5,), (1,),
              empty=[(0, 4, 6)]),
    slice_row("negative numbers", (4, 6), np.s_[-3:-1, -5:-1:2], (-3, -5), (-1, -1), (1, 2)),
    slice_row("backwards", (4, 6), np.s_[3:0:-1, 5:1:-2], (3, 5), (0, 1), (-1, -2)),
    slice_row("backwards to the start", (4, 6), np.s_[::-1, ::-2], (None, None), (None, None),
              (-1, -2)),
    slice_row("backwards, last axis", (2, 5), np.s_[:, ::-1], (None,), (None,), (-1,)),
    slice_row("none among them", (4, 6), np.s_[1:, :4], (1, None), (None, 4), (None, 1)),
    slice_row("only start", (4, 6), np.s_[1:, 2:], (1, 2)),
    slice_row("only stop", (4, 6), np.s_[:3, :-1], None, (3, -1)),
    slice_row("only step", (4, 6), np.s_[::2, ::3], None, None, (2, 3)),
    slice_row("beyond the end", (4, 6), np.s_[2:9, 1:99:2], (2, 1), (9, 99), (1, 2)),
    slice_row("nothing", (4, 6), np.s_[3:1, 0:6], (3, 0), (1, 6), (1, 1)),
    slice_row("nothing, backwards from before the start", (4, 6), np.s_[-9::-1, :],
              (-9, 0), (None, 6), (-1, 1)),
    slice_row("of nothing", (0, 6), np.s_[::-1, 1:3], (None, 1), (None, 3), (-1, 1)),
    Case("concatenate", F.concatenate, [Input((2, 3)), Input((2, 1)), Input((2, 2))],
         lambda *x: np.concatenate(x, -1), empty=[(0, 3), (0, 1), (0, 2)]),
    Case("concatenate", lambda *x: F.concatenate(*x, axis=0), [A, Input((1, 3, 4))],
         lambda *x: np.concatenate(x, 0), "axis 0"),
    Case("concatenate", lambda *x: F.concatenate(*x, axis=-2), [A, Input((2, 1, 4))],
         lambda *x: np.concatenate(x, 1), "axis -2"),
    Case("concatenate", F.concatenate, [A], lambda x: x, "one array"),
    Case("concatenate", F.concatenate, [Input((2, 3)), Input((2, 0))], lambda x, y: x,
         "an empty array"),
    Case("concatenate", lambda x: F.concatenate(x, x, axis=1), [SMALL],
         lambda x: np.concatenate((x, x), 1), "the same array twice"),
    Case("stack", F.stack, [SMALL, SMALL, SMALL], lambda *x: np.stack(x),
         empty=[(0, 4), (0, 4), (0, 4)]),
    Case("stack", lambda *x: F.stack(*x, axis=1), [SMALL, SMALL], lambda *x: np.stack(x, 1),
         "axis 1"),
    Case("stack", lambda *x: F.stack(*x, axis=-1), [SMALL, SMALL], lambda *x: np.stack(x, -1),
         "last axis"),
    Case("stack", F.stack, [Input(()), Input(())], lambda *x: np.stack(x), "numbers"),
    Case("stack", F.stack, [SMALL], lambda x: x[None], "one array"),
    *(Case("split", lambda x, a=axis: F.split(x, axis=a), [A],
           lambda x, a=axis: tuple(np.moveaxis(x, a, 0)), f"axis {axis}")
      for axis in (0, 1, -1)),
    Case("split", F.split, [Input((1, 3))], lambda x: (x[0],), "one part"),
    pad_row("", (2, 3), (1, 2, 2, 0)),
    pad_row("last axis", (2, 3, 4), (2, 1)),
    pad_row("value", (2, 3), (1, 1, 0, 2), value=-1.5),
    pad_row("no width", (2, 3), ()),
    pad_row("reflect", (3, 4), (1, 2, 3, 0), "reflect"),
    pad_row("reflect, last axis", (2, 3, 4), (2, 3), "reflect"),
    pad_row("reflect, wider than the array", (2, 3), (3, 4, 7, 9), "reflect"),
    pad_row("reflect, one element", (1, 3), (2, 2, 1, 1), "reflect"),
    pad_row("repeat", (3, 4), (1, 2, 3, 0), "repeat"),
    pad_row("repeat, wider than the array", (2, 3), (3, 4, 7, 9), "repeat"),
    pad_row("repeat, last axis", (2, 3, 4), (2, 3), "repeat"),
]
# fmt: on
