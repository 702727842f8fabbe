"""Which way of computing a convolution on the CPU is taken: as expected, or as timing has found.

A way is an object with `forward(x, w, b, out)` and `gradients(dy, x, w, dx, dw)`. One is chosen for
both, since gradients of some share what forward transformed, and for all numbers of threads, on
which no bit may depend.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import autotune, processor
from ..kernels import numba_version
from .im2col import Geometry

Ways = dict[str, Callable[[], Any]]  # by name; the first is expected to be the fastest


def fastest_way(
    ways: Ways, geometry: Geometry, xp: Any, x_shape: Any, w_shape: Any, dtype: np.dtype
) -> str:
    """The name of the way to take."""
    expected = next(iter(ways))
    if len(ways) == 1 or not autotune.in_use():
        return expected
    configuration = (
        f"{_cpu()}: convolution, {dtype.name}, x {tuple(x_shape)}, w {tuple(w_shape)}, pad "
        f"{geometry.pad}, stride {geometry.stride}, dilation {geometry.dilation}, group "
        f"{geometry.group}, of {', '.join(sorted(ways))}"
    )
    name = autotune.chosen(
        configuration, lambda: _timed(ways, geometry, xp, x_shape, w_shape, dtype)
    )
    return name if name in ways else expected


def _timed(
    ways: Ways, geometry: Geometry, xp: Any, x_shape: Any, w_shape: Any, dtype: np.dtype
) -> str:
    """The way that takes the least time for forward and both gradients.

    Where there is no memory to try, the one that is expected to.
    """
    rng = np.random.default_rng(0)
    y_shape = (x_shape[0], w_shape[0], *geometry.results(x_shape[2:], w_shape[2:]))
    shapes = (x_shape, w_shape, y_shape)
    try:
        x, w, dy = (rng.standard_normal(shape, np.float32).astype(dtype) for shape in shapes)
        y, dx, dw = (xp.empty(a.shape, dtype) for a in (dy, x, w))
    except MemoryError:
        return next(iter(ways))

    def run(name: str) -> None:
        way = ways[name]()
        way.forward(x, w, None, y)
        way.gradients(dy, x, w, dx, dw)

    return autotune.least_time({name: functools.partial(run, name) for name in ways})


@functools.cache
def _cpu() -> str:
    from .. import __version__

    facts = {"distnn": __version__, "processor": processor.model(), **processor.libraries()}
    facts["Numba"] = numba_version() or "not there"
    return ", ".join(f"{name} {fact}" for name, fact in facts.items())
