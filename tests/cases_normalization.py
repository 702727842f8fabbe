"""Rows for batch normalization."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from cases_row import Case, Input

import distnn.communicators as C
import distnn.functions as F
from distnn.context import World, world_scope


def statistics(x: Any, axes: Sequence[int]) -> tuple[Any, Any]:
    """Mean and (biased) variance over all axes but `axes`."""
    summed = tuple(i for i in range(x.ndim) if i not in [a % x.ndim for a in axes])
    mean = x.mean(summed, keepdims=True)
    return mean, ((x - mean) ** 2).mean(summed, keepdims=True)


def normalized(x: Any, beta: Any, gamma: Any, mean: Any, variance: Any, eps: float) -> Any:
    return (x - mean) / np.sqrt(variance + eps) * gamma + beta


@functools.cache
def alone() -> C.DataParallelCommunicator:
    """A communicator of one rank; tests/test_sync_batch_normalization.py has several."""
    comm = C.DataParallelCommunicator()
    with world_scope(World()):
        comm.init()
    return comm


def row(
    note: str,
    shape: Sequence[int],
    axes: Sequence[int] = (1,),
    beta: bool = True,
    gamma: bool = True,
    batch_stat: bool = True,
    output_stat: bool = False,
    decay_rate: float = 0.9,
    eps: float = 1e-5,
    spread: tuple[float, float] = (-2.0, 2.0),
    name: str = "batch_normalization",
    z: bool = False,
    **options: Any,
) -> Case:
    channels = tuple(n if i in [a % len(shape) for a in axes] else 1 for i, n in enumerate(shape))
    inputs = [Input(tuple(shape), *spread)]
    inputs += [Input(channels)] * beta + [Input(channels)] * gamma
    # Running statistics are numbers, not variables, as long as those of the batch are used.
    inputs += [Input(channels, grad=not batch_stat), Input(channels, 0.5, 2.0, grad=not batch_stat)]
    inputs += [Input(tuple(shape))] * z
    fused = name == "fused_batch_normalization"

    def arguments(inputs: tuple) -> list:
        x, *rest = inputs
        shift = rest.pop(0) if beta else None
        scale = rest.pop(0) if gamma else None
        return [x, shift, scale, *rest]

    def call(*inputs: Any) -> Any:
        synchronized = (alone(),) if name == "sync_batch_normalization" else ()
        return getattr(F, name)(
            *arguments(inputs),
            *synchronized,
            axes=list(axes),
            decay_rate=decay_rate,
            eps=eps,
            batch_stat=batch_stat,
            output_stat=output_stat,
        )

    def ref(*inputs: Any) -> Any:
        x, shift, scale, mean, variance, *added = arguments(inputs)
        if batch_stat:
            mean, variance = statistics(x, axes)
        shift, scale = 0 if shift is None else shift, 1 if scale is None else scale
        y = normalized(x, shift, scale, mean, variance, eps)
        if fused:
            y = np.maximum(y + added[0] if z else y, 0)
        return (y, mean, variance) if output_stat else y

    def updates(*inputs: Any) -> dict[int, Any]:
        x, _, _, old_mean, old_variance, *_ = arguments(inputs)
        mean, variance = statistics(x, axes)
        count = x.size // mean.size
        unbiased = variance * count / (count - 1) if count > 1 else variance
        k = 1 + beta + gamma
        return {
            k: decay_rate * old_mean + (1 - decay_rate) * mean,
            k + 1: decay_rate * old_variance + (1 - decay_rate) * unbiased,
        }

    return Case(
        name,
        call,
        inputs,
        ref,
        note,
        updates=updates if batch_stat else None,
        **options,
    )


# fmt: off
CASES = [
    row("images", (4, 3, 2, 3)),
    row("vectors", (6, 3)),
    row("sequences", (4, 3, 5)),
    row("channels last", (4, 2, 3, 5), axes=[3]),
    row("negative axis", (4, 2, 3, 5), axes=[-1]),
    row("axis 0", (3, 4, 2), axes=[0]),
    row("neighbouring axes", (4, 2, 3, 5), axes=[1, 2]),
    row("last two axes", (4, 2, 3, 5), axes=[2, 3]),
    row("axes apart", (4, 2, 3, 5), axes=[1, 3]),
    row("axes apart, first and last", (3, 4, 2, 2), axes=[0, 3]),
    row("axes out of order", (4, 2, 3, 5), axes=[3, 1]),
    row("no beta", (4, 3, 2, 3), beta=False),
    row("no gamma", (4, 3, 2, 3), gamma=False),
    row("neither", (4, 3, 2, 3), beta=False, gamma=False),
    row("neither, axes apart", (4, 2, 3, 5), axes=[1, 3], beta=False, gamma=False),
    row("decay_rate and eps", (4, 3, 2, 3), decay_rate=0.75, eps=0.1),
    row("one element a channel", (1, 3, 1, 1), second=False),
    row("output_stat", (4, 3, 2, 3), output_stat=True),
    row("output_stat, vectors, no gamma", (6, 3), output_stat=True, gamma=False),
    row("output_stat, axes apart", (4, 2, 3, 5), axes=[1, 3], output_stat=True),
    row("large maps", (3, 2, 12, 13), rtol=5e-6),
    row("many images", (40, 16, 16, 16), second=False, rtol=5e-6),
    row("many vectors", (3000, 40), second=False, rtol=5e-6),
    row("large mean", (16, 3, 4, 4), spread=(1000.0, 1002.0), second=False, rtol=2e-4),
    row("running", (4, 3, 2, 3), batch_stat=False, empty=[(0, 3, 2, 3), *[(1, 3, 1, 1)] * 4]),
    row("running, vectors", (6, 3), batch_stat=False),
    row("running, channels last", (4, 2, 3, 5), axes=[3], batch_stat=False),
    row("running, axes apart", (4, 2, 3, 5), axes=[1, 3], batch_stat=False),
    row("running, no beta", (4, 3, 2, 3), beta=False, batch_stat=False),
    row("running, no gamma", (4, 3, 2, 3), gamma=False, batch_stat=False),
    row("running, neither", (4, 3, 2, 3), beta=False, gamma=False, batch_stat=False),
    row("running, eps", (4, 3, 2, 3), eps=0.1, batch_stat=False),
    *(
        row(note, shape, name="fused_batch_normalization", **options)
        for note, shape, options in [
            ("images", (4, 3, 2, 3), {"z": True}),
            ("nothing added", (4, 3, 2, 3), {}),
            ("vectors", (6, 3), {"z": True}),
            ("channels last", (4, 2, 3, 5), {"axes": [3], "z": True}),
            ("axes apart", (4, 2, 3, 5), {"axes": [1, 3], "z": True}),
            ("no beta", (4, 3, 2, 3), {"beta": False, "z": True}),
            ("neither", (4, 3, 2, 3), {"beta": False, "gamma": False, "z": True}),
            ("decay_rate and eps", (4, 3, 2, 3), {"decay_rate": 0.75, "eps": 0.1, "z": True}),
            ("output_stat", (4, 3, 2, 3), {"output_stat": True, "z": True}),
            ("output_stat, nothing added", (4, 3, 2, 3), {"output_stat": True}),
            ("large maps", (3, 2, 12, 13), {"z": True, "rtol": 5e-6}),
            ("many vectors", (3000, 40), {"z": True, "second": False, "rtol": 5e-6}),
            ("running", (4, 3, 2, 3), {"batch_stat": False, "z": True}),
            ("running, nothing added", (4, 3, 2, 3), {"batch_stat": False}),
        ]
    ),
    *(
        row(note, shape, name="sync_batch_normalization", **options)
        for note, shape, options in [
            ("images", (4, 3, 2, 3), {}),
            ("vectors", (6, 3), {}),
            ("axes apart", (4, 2, 3, 5), {"axes": [1, 3]}),
            ("no beta", (4, 3, 2, 3), {"beta": False}),
            ("neither, axes apart", (4, 2, 3, 5), {"axes": [1, 3], "beta": False, "gamma": False}),
            ("decay_rate and eps", (4, 3, 2, 3), {"decay_rate": 0.75, "eps": 0.1}),
            ("output_stat", (4, 3, 2, 3), {"output_stat": True}),
            ("output_stat, axes apart", (4, 2, 3, 5), {"axes": [1, 3], "output_stat": True}),
            ("large maps", (3, 2, 12, 13), {"rtol": 5e-6}),
            ("many vectors", (3000, 40), {"second": False, "rtol": 5e-6}),
            ("running", (4, 3, 2, 3), {"batch_stat": False}),
        ]
    ),
]
# fmt: on
