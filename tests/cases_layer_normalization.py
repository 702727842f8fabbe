"""Rows for layer, instance, group and tensor normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from cases_row import Case, Input

import distnn.functions as F


def normalized(x: Any, own: Sequence[int], eps: float) -> tuple[Any, Any, Any]:
    """x by its mean and variance over all axes but `own`; and these."""
    summed = tuple(i for i in range(x.ndim) if i not in [a % x.ndim for a in own])
    mean = x.mean(summed, keepdims=True)
    variance = ((x - mean) ** 2).mean(summed, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps), mean, variance


def regrouped(x: Any, groups: int, axis: int) -> Any:
    axis %= x.ndim
    return x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])


def row(
    kind: str,
    note: str,
    shape: Sequence[int],
    parameter: Sequence[int] | None,
    own: Sequence[int],
    beta: bool = True,
    gamma: bool = True,
    eps: float = 1e-5,
    groups: int | None = None,
    channel: int = 1,
    spread: tuple[float, float] = (-2.0, 2.0),
    arguments: Any = None,
    output_stat: bool = False,
    **options: Any,
) -> Case:
    """parameter: shape of beta and gamma; own: axes of statistics; arguments: of the call."""
    name = f"{kind}_normalization"
    inputs = [Input(tuple(shape), *spread)]
    inputs += [Input(tuple(parameter or ()))] * beta + [Input(tuple(parameter or ()))] * gamma

    def split(inputs: tuple) -> tuple[Any, Any, Any]:
        x, *rest = inputs
        return x, rest.pop(0) if beta else None, rest.pop(0) if gamma else None

    def call(*inputs: Any) -> Any:
        x, shift, scale = split(inputs)
        given = dict(arguments or {}, eps=eps, output_stat=output_stat)
        if kind == "tensor":
            return F.tensor_normalization(x, own, shift, scale, **given)
        return getattr(F, name)(x, shift, scale, **given)

    def ref(*inputs: Any) -> Any:
        x, shift, scale = split(inputs)
        shift, scale = 0 if shift is None else shift, 1 if scale is None else scale
        parts = x if groups is None else regrouped(x, groups, channel)
        normal, mean, variance = normalized(parts, own, eps)
        y = normal.reshape(x.shape) * scale + shift
        return (y, mean, variance) if output_stat else y

    return Case(name, call, inputs, ref, note, **options)


def layer(note: str, shape: Sequence[int], batch: Sequence[int] = (0,), **options: Any) -> Case:
    ones = [a % len(shape) for a in batch]
    parameter = options.pop("parameter", [1 if i in ones else n for i, n in enumerate(shape)])
    arguments = {} if batch == (0,) else {"batch_axis": list(batch)}
    return row("layer", note, shape, parameter, batch, arguments=arguments, **options)


def instance(
    note: str, shape: Sequence[int], channel: int = 1, batch: Sequence[int] = (0,), **options: Any
) -> Case:
    where = channel % len(shape)
    parameter = options.pop("parameter", [n if i == where else 1 for i, n in enumerate(shape)])
    arguments = {"channel_axis": channel, "batch_axis": list(batch)} if note else {}
    own = [channel, *batch]
    return row("instance", note, shape, parameter, own, arguments=arguments, **options)


def group(
    note: str,
    shape: Sequence[int],
    groups: int,
    channel: int = 1,
    batch: Sequence[int] = (0,),
    **options: Any,
) -> Case:
    where = channel % len(shape)
    parameter = [n if i == where else 1 for i, n in enumerate(shape)]
    own = [where, *(a + (a > where) for a in batch)]
    arguments = {"num_groups": groups}
    if note:
        arguments |= {"channel_axis": channel, "batch_axis": list(batch)}
    return row(
        "group", note, shape, parameter, own, groups=groups, channel=channel, arguments=arguments,
        **options,
    )  # fmt: skip


# fmt: off
CASES = [
    layer("", (4, 6), empty=[(0, 6), (1, 6), (1, 6)]),
    layer("images", (4, 3, 2, 3)),
    layer("tokens", (3, 4, 8), (0, 1), empty=[(3, 0, 8), (1, 1, 8), (1, 1, 8)]),
    layer("time first", (4, 3, 5), (-2,)),
    layer("batch last", (4, 3, 5), (2,)),
    layer("axes apart", (4, 3, 5, 2), (0, 2)),
    layer("over all axes", (4, 3), (), parameter=(4, 3)),
    layer("scalar scale", (4, 3, 2), parameter=(1, 1, 1)),
    layer("one scale a row", (4, 3, 2), parameter=(4, 1, 1)),
    layer("no beta", (4, 6), beta=False),
    layer("no gamma", (4, 6), gamma=False),
    layer("neither", (4, 6), beta=False, gamma=False),
    layer("eps", (4, 6), eps=0.1),
    layer("one element", (4, 1), second=False),
    layer("output_stat", (4, 3, 2), output_stat=True),
    layer("output_stat, tokens", (3, 4, 8), (0, 1), output_stat=True),
    layer("large mean", (8, 40), spread=(1000.0, 1002.0), second=False, rtol=2e-4),
    layer("long rows", (3, 5000), second=False, rtol=5e-6),
    layer("very long rows", (3, 70001), second=False, rtol=5e-6),
    layer("many tokens", (50, 40, 64), (0, 1), second=False, rtol=5e-6),
    instance("", (4, 3, 2, 3), empty=[(0, 3, 2, 3), *[(1, 3, 1, 1)] * 2]),
    instance("sequences", (4, 3, 6)),
    instance("channels last", (4, 5, 3, 2), 3),
    instance("negative axes", (4, 5, 3, 2), -1, (-4,)),
    instance("two batch axes", (2, 3, 4, 5), 2, (0, 1)),
    instance("parameters of each example", (4, 3, 2, 3), parameter=(4, 3, 1, 1)),
    instance("no beta", (4, 3, 2, 3), beta=False),
    instance("neither", (4, 3, 2, 3), beta=False, gamma=False),
    instance("output_stat", (4, 3, 2, 3), output_stat=True, eps=1e-3),
    instance("large maps", (3, 2, 60, 61), second=False, rtol=5e-6),
    instance("large maps, channels last", (2, 60, 61, 5), 3, second=False, rtol=5e-6),
    group("", (4, 6, 2, 3), 2, empty=[(0, 6, 2, 3), *[(1, 6, 1, 1)] * 2]),
    group("vectors", (5, 15), 3),
    group("channels last", (4, 2, 3, 6), 2, 3),
    group("one group", (4, 6, 2, 3), 1),
    group("a group a channel", (4, 3, 2, 3), 3),
    group("two batch axes", (2, 3, 4, 5), 2, 2, (0, 1)),
    group("batch after channels", (4, 3, 2), 2, 0, (1,)),
    group("no gamma", (4, 6, 2, 3), 2, gamma=False),
    group("output_stat", (4, 6, 2, 3), 2, output_stat=True),
    group("many", (20, 16, 12, 12), 4, second=False, rtol=5e-6),
    row("tensor", "", (4, 3, 2, 3), (4, 1, 1, 1), [0]),
    row("tensor", "one axis for all", (4, 3, 2), (1, 3, 1), [1]),
    row("tensor", "axes apart", (4, 3, 2), (4, 1, 2), [0, -1]),
    row("tensor", "none of its own", (4, 3), (1, 3), [], beta=False),
    row("tensor", "all of its own", (4, 3), (4, 3), [0, 1], second=False),
    row("tensor", "output_stat", (4, 3, 2), None, [1], beta=False, gamma=False, output_stat=True),
]
# fmt: on
