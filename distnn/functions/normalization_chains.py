"""Chains of formulas that batch normalization computes with its own passes (fusion.py says which).

Its result is one more formula before the chain that follows it, and its gradient one more after the
chain of gradients before it:

    y = (x - mean) a + b            dx = dy a - (x - mean) b - c

with numbers for each channel, as functions/channels.py has them. Nothing but the sums of dy and
dy (x - mean) needs a pass of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..formula import Formula
from ..formula_chain import Chain, Joined, Link, renamed
from .channels import Channels
from .precision import wide

SCALED = Formula("(x - mean) * a", ("x", "mean", "a"), ())
SHIFTED = Formula("(x - mean) * a + b", ("x", "mean", "a", "b"), ())
COMBINED = Formula("dy * a - (x - mean) * b - c", ("dy", "x", "mean", "a", "b", "c"), ())


@functools.lru_cache(maxsize=4096)
def _after(formula: Formula, chain: Chain) -> Chain:
    """The chain of a formula's value, which is its first array."""
    first, *others = chain.arrays
    arrays = (*formula.arrays, *others)
    return Chain([Link(first, formula.tree), *chain.links], arrays, chain.numbers, chain.outputs)


@functools.lru_cache(maxsize=4096)
def _first_output(chain: Chain) -> Chain:
    return Chain(chain.links, chain.arrays, chain.numbers, chain.outputs[:1])


@functools.lru_cache(maxsize=4096)
def _before(chain: Chain, wanted: bool) -> Chain:
    """dx, where it is wanted, and the chain's outputs but the first, which is dy."""
    dy, *others = chain.outputs
    _, *arrays = COMBINED.arrays
    tree = renamed(COMBINED, {"dy": dy} | {name: name for name in arrays})
    links, outputs = [*chain.links, Link("dx", tree)], [*(["dx"] if wanted else []), *others]
    return Chain(links, (*chain.arrays, *arrays), chain.numbers, outputs)


def scale_chain(
    xp: Any,
    channels: Channels,
    x: np.ndarray,
    mean: np.ndarray,
    a: np.ndarray,
    b: np.ndarray | None,
    joined: Joined,
) -> None:
    """The outputs of a chain of y = (x - mean) a + b."""
    formula = SCALED if b is None else SHIFTED
    numbers = [_plane(channels, n, x) for n in (mean, a, *([] if b is None else [b]))]
    arrays = _arranged(channels, [x, *joined.arrays])
    arrays[1:1] = numbers
    outs = _arranged(channels, joined.outs)
    xp.evaluate_chain(_after(formula, joined.chain), arrays, joined.numbers, outs)


def products_of_chain(
    xp: Any, channels: Channels, joined: Joined, x: np.ndarray, mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Per channel the sums of dy and dy (x - mean), where dy is the chain's first output.

    None where parts of it cannot be computed alone.
    """
    chain = _first_output(joined.chain)
    evaluate = xp.part_kernel(chain, joined.numbers, x.dtype, x.size)
    if evaluate is None:
        return None
    arrays = _arranged(channels, joined.arrays)

    def dy(i: int, j: int) -> np.ndarray:
        part = xp.empty((j - i, *channels.shape[1:]), x.dtype)
        evaluate([part.reshape(-1)], [a[i:j].reshape(-1) for a in arrays])
        return part

    return channels.products(dy, x.reshape(channels.shape), mean)


def combine_chain(
    xp: Any,
    channels: Channels,
    joined: Joined,
    x: np.ndarray,
    mean: np.ndarray,
    numbers: tuple[np.ndarray, np.ndarray, np.ndarray],
    dx: np.ndarray | None,
) -> None:
    """dx = dy a - (x - mean) b - c, if wanted, and the chain's outputs but dy."""
    if dx is None and not joined.outs:
        return
    arrays = _arranged(channels, [*joined.arrays, x])
    arrays += [_plane(channels, n, x) for n in (mean, *numbers)]
    outs = _arranged(channels, [*([] if dx is None else [dx]), *joined.outs])
    xp.evaluate_chain(_before(joined.chain, dx is not None), arrays, joined.numbers, outs)


def _arranged(channels: Channels, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [a.reshape(channels.shape) for a in arrays]


def _plane(channels: Channels, numbers: np.ndarray, x: np.ndarray) -> np.ndarray:
    return channels.plane(numbers.astype(wide(x.dtype), copy=False))[None]
