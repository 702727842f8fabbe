"""Profiler: what the engine has made of a program's graphs."""

from __future__ import annotations

from .plan import plans


def plan_stats() -> dict[str, int]:
    """How often the structure of a graph was known, and what is kept of structures.

    Returns:
        plans: structures whose plan is kept (the least recently used are dropped).
        hits, misses: graphs whose structure had a plan, and that needed a new one. A training loop
            whose graphs are alike makes no misses after its first iterations.
        programs: plans that became straight-line programs (docs/static_and_dynamic.md).

    >>> import distnn as nn, distnn.functions as F
    >>> y = F.tanh(nn.Variable((2, 3)))
    >>> before = nn.profiler.plan_stats()
    >>> y.forward()
    >>> after = nn.profiler.plan_stats()
    >>> after["hits"] + after["misses"] - before["hits"] - before["misses"]
    1
    """
    return plans.stats()
