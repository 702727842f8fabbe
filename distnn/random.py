"""Random numbers: Philox of (seed, worker, draw, index), and the state of initializers.

A random function's numbers depend on who draws (the worker: a rank), on the number of the draw and
on the position in the array, not on threads, devices or what else runs. Philox is a counter-based
generator: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .context import World, current_world, launch_step
from .errors import ArgumentError


class Draw(NamedTuple):
    """One draw of random numbers: the key of a stream that starts at index 0."""

    seed: int
    worker: int
    draw: int

    def words(self, count: int) -> np.ndarray:
        """`count` uniform uint32."""
        # Philox4x64 yields four 64-bit words a step of its counter; (seed, worker) is the key and
        # the draw the second word of the counter, so that no two draws overlap.
        generator = np.random.Philox(
            key=np.array([self.seed, self.worker], np.uint64),
            counter=np.array([0, self.draw, 0, 0], np.uint64),
        )
        return generator.random_raw(-(-count // 2)).view(np.uint32)[:count]

    def uniform(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Uniform numbers in [0, 1) with 24 random bits."""
        count = int(np.prod(shape))
        return (
            ((self.words(count) >> np.uint32(8)) * np.float32(2.0**-24))
            .reshape(shape)
            .astype(dtype)
        )

    def bernoulli(self, p: float, shape: tuple[int, ...]) -> np.ndarray:
        """True with probability p, as a bool array."""
        return (self.words(int(np.prod(shape))) < np.uint64(threshold(p))).reshape(shape)

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """Standard normal numbers in float64, in pairs from pairs of uniform ones."""
        count = int(np.prod(shape))
        values = self.words(2 * -(-count // 2)).reshape(-1, 2).astype(np.float64)
        radius = np.sqrt(-2 * np.log((values[:, 0] + 0.5) * 2.0**-32))
        angle = values[:, 1] * (2 * np.pi * 2.0**-32)
        values[:, 0] = radius * np.cos(angle)
        values[:, 1] = radius * np.sin(angle)
        return values.reshape(-1)[:count].reshape(shape)

    def integers(self, n: int, shape: tuple[int, ...]) -> np.ndarray:
        """Whole numbers from 0 up to but without n, n up to 2^32, as int64."""
        words = self.words(int(np.prod(shape))).astype(np.uint64)
        return ((words * np.uint64(n)) >> np.uint64(32)).astype(np.int64).reshape(shape)


def threshold(p: float) -> int:
    """The number that a uniform uint32 is below with probability p."""
    return round(p * 2.0**32)


def seed(value: int, set_function_seed: bool = True, set_parameter_seed: bool = True) -> None:
    """Start the random numbers of functions and of initializers anew from `value`.

    >>> import distnn as nn
    >>> nn.seed(313)
    """
    if not isinstance(value, int | np.integer) or value < 0:
        raise ArgumentError(f"[seed] value is {value!r}; pass an int of 0 or more")
    launch_step()
    world = current_world()
    if set_function_seed:
        world.seed = int(value)
        world.draws = 0
    if set_parameter_seed:
        world.parameter_generator = np.random.RandomState(int(value))


def set_function_seed(value: int) -> None:
    """Start the random numbers of functions (dropout, rand, ...) anew."""
    seed(value, True, False)


def set_parameter_seed(value: int) -> None:
    """Start the random numbers of initializers anew."""
    seed(value, False, True)


def get_state() -> dict[str, Any]:
    """All that the random numbers of this World depend on, as plain values; for `set_state`."""
    launch_step()
    world = current_world()
    generator = world._parameter_generator
    return {
        "seed": world.seed,
        "draws": world.draws,
        "parameters": None if generator is None else generator.get_state(legacy=False),
        "functions": [[repr(node), node.seed, node.draws] for node in _seeded(world)],
    }


def set_state(state: Mapping[str, Any]) -> None:
    """Go on with the random numbers where `get_state` was called.

    Static graphs with random functions that have a seed of their own go on where they were, if they
    are there already: functions of equal shapes and seed in the order in which they were made.
    """
    launch_step()
    world = current_world()
    world.seed = state["seed"]
    world.draws = state["draws"]
    if state["parameters"] is not None:
        world.parameter_generator.set_state(state["parameters"])
    counts: dict[tuple[str, int], list[int]] = {}
    for function, own_seed, draws in state["functions"]:
        counts.setdefault((function, own_seed), []).append(draws)
    for node in _seeded(world):
        saved = counts.get((repr(node), node.seed))
        if saved:
            node.draws = saved.pop(0)


def _seeded(world: World) -> list[Any]:
    """Calls of functions with a seed of their own in static graphs, in order of creation."""
    return sorted(world.seeded, key=lambda node: node.order)


def __getattr__(name: str) -> Any:
    if name == "prng":  # NNabla's name for the initializers' generator
        return current_world().parameter_generator
    raise AttributeError(f"module 'distnn.random' has no attribute {name!r}")
