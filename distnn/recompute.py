"""Recompute: results that are not kept for backward, which computes them again when it reads them.

It trades time for memory: of a block of functions in which all results are marked, only what the
block reads is kept. A result is marked by `nn.recompute()` around its call, or by
`Variable.recompute = True`. Which calls forget their results is settled when they are computed
(`Node.forgets`), since what a node keeps depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any

from .errors import ArgumentError
from .function import Setup

if TYPE_CHECKING:
    from .graph import Node
    from .ndarray import NdArray
    from .plan import ForwardStep, Plan

_recomputing: ContextVar[bool] = ContextVar("distnn_recomputing", default=False)


@contextmanager
def recompute(recompute_: bool = True) -> Iterator[None]:
    """Results of functions called inside the block are not kept, but computed again in backward.

    Values, gradients and running statistics are the same to the bit: random functions draw the same
    numbers again, and effects happen in forward only. Hooks see each function once in forward and
    once in backward, not when it is computed again. Leave the results that a block hands on out of
    it, or everything is computed again at once. What takes part in a collective
    (`sync_batch_normalization`), changes what it reads, or is written by users
    (`PythonFunction`) is kept nevertheless.

    In backward leaves are read as they are then: change no parameter between forward and backward.

    Args:
        recompute_: False keeps results, inside of a block that does not.

    Chen et al., "Training deep nets with sublinear memory cost", arXiv:1604.06174.

    >>> import distnn as nn, distnn.functions as F
    >>> with nn.recompute():
    ...     h = F.tanh(nn.Variable((2, 3)))
    >>> h.recompute
    True
    """
    token = _recomputing.set(bool(recompute_))
    try:
        yield
    finally:
        _recomputing.reset(token)


def recompute_fn(recompute_: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the function runs inside of `nn.recompute(recompute_)`.

    >>> import distnn as nn, distnn.functions as F
    >>> @nn.recompute_fn()
    ... def block(x):
    ...     return F.tanh(x * 2)
    >>> block(nn.Variable((2, 3))).recompute
    True
    """
    if callable(recompute_):
        name = getattr(recompute_, "__name__", type(recompute_).__name__)
        raise ArgumentError(
            f"[recompute_fn] recompute_ is the function {name}; pass True or False: write "
            "@nn.recompute_fn() with parentheses"
        )

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if not callable(function):
            raise ArgumentError(
                f"[recompute_fn] function is {type(function).__name__}; decorate a function"
            )

        @wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with recompute(recompute_):
                return function(*args, **kwargs)

        return wrapped

    return decorate


def set_global_recompute(recompute: bool) -> None:
    """Mark the results of all functions called from now on in this thread, or none."""
    _recomputing.set(bool(recompute))


is_recomputing = _recomputing.get


def marked(node: Node) -> int:
    """Which results of a call to forget, as a mask of bits: those that are marked for it."""
    if not node.setup.function.can_recompute():
        return 0
    outputs = [node.live_output(i) for i in range(node.setup.n_outputs)]
    mask = 0
    for i, output in enumerate(outputs):
        if output is not None and output.recompute and not output.persistent:
            mask |= 1 << i
    if mask and all(value is None or mask >> i & 1 for i, value in enumerate(outputs)):
        return all_of(node.setup)  # what nobody holds goes with the others
    return mask


def all_of(setup: Setup) -> int:
    """The mask of all results; then what only backward reads is forgotten, too."""
    return (1 << setup.n_outputs) - 1


def kept_positions(
    setup: Setup, reads: Sequence[int], hidden: Sequence[bool], forgets: int
) -> tuple[int, ...]:
    """What a call keeps: positions of what gradients read, and of what computes it again.

    Args:
        reads: positions that its gradients read.
        hidden: for each input whether the call that computes it forgets it.
        forgets: mask of the results that this call forgets.
    """
    n = len(setup.input_shapes)
    first_saved = n + setup.n_outputs

    def is_kept(position: int) -> bool:
        if position < n:
            return not hidden[position]
        if position < first_saved:
            return not forgets >> (position - n) & 1
        return forgets != all_of(setup)

    kept = {position for position in reads if is_kept(position)}
    if forgets:
        kept.update(p for p in setup.recomputed_from if not hidden[p])
    return tuple(sorted(kept))


def compute_again(
    plan: Plan, nodes: Sequence[Node], step: ForwardStep, again: dict[int, NdArray]
) -> None:
    """Compute a call once more; `again` is what was computed again so far, by slot."""
    node = nodes[step.node]
    results = node.execute_again(forgotten(plan, step.node, again))
    n = len(node.sources)
    for position, slot in plan.forgotten_positions(step.node).items():
        if position >= n:
            again[slot] = results[position - n]
    for slot in step.clears:
        del again[slot]


def forgotten(plan: Plan, k: int, again: dict[int, NdArray]) -> dict[int, NdArray]:
    """What a call did not keep, by position, as far as it was computed again."""
    if not again:
        return again
    return {p: again[s] for p, s in plan.forgotten_positions(k).items() if s in again}
