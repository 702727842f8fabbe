"""Random generators of a data source: found among its attributes, their states read and put back.

The search goes by attribute, not by a fixed name: NNabla's own examples keep theirs in `self.rng`
beside the base class's `self._rng`. Sources inside a source (slices, caches) are searched too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..errors import ArgumentError
from .source import GENERATOR_TYPES, DataSource, RandomGenerator


def get_generator_state(rng: RandomGenerator) -> dict[str, Any]:
    """State of a numpy generator: a dict of numbers, texts and arrays."""
    if isinstance(rng, np.random.RandomState):
        return rng.get_state(legacy=False)
    return dict(rng.bit_generator.state)


def set_generator_state(rng: RandomGenerator, state: Mapping[str, Any]) -> None:
    """Put a state back that `get_generator_state` returned."""
    if isinstance(rng, np.random.RandomState):
        rng.set_state(dict(state))
    else:
        rng.bit_generator.state = state


def get_generator_states(source: object) -> dict[str, dict[str, Any]]:
    """States of all generators of `source`, by the path of attributes that leads to each.

    >>> from distnn.data import DataSource
    >>> list(get_generator_states(DataSource()))
    ['_rng']
    """
    return {path: get_generator_state(rng) for path, rng in _generators(source).items()}


def set_generator_states(source: object, states: Mapping[str, Mapping[str, Any]]) -> None:
    """Put back what `get_generator_states` returned."""
    for path, rng in _generators(source).items():
        set_generator_state(rng, states[path])


def check_generator_states(function: str, source: object, states: Mapping[str, Any]) -> None:
    """Raise if `states` were taken of a source with other generators."""
    generators = _generators(source)
    if set(states) != set(generators):
        raise ArgumentError(
            f"[{function}] state has the random generators {sorted(states)} but the data source "
            f"has {sorted(generators)}; make the data source as it was when the state was taken"
        )
    for path, rng in generators.items():
        here = get_generator_state(rng)["bit_generator"]
        there = states[path]["bit_generator"]
        if here != there:
            raise ArgumentError(
                f"[{function}] state of the random generator {path!r} is of {there} but the data "
                f"source has {here}; make the data source with the same kind of generator"
            )


def _generators(source: object) -> dict[str, RandomGenerator]:
    """Generators by path; one that several attributes share is listed once."""
    return dict(_walk(source, "", set()))


def _walk(value: object, path: str, seen: set[int]) -> Iterator[tuple[str, RandomGenerator]]:
    if isinstance(value, GENERATOR_TYPES):
        if id(value) not in seen:
            seen.add(id(value))
            yield path, value
    elif isinstance(value, DataSource):
        if id(value) not in seen:
            seen.add(id(value))
            for name, member in list(vars(value).items()):
                yield from _walk(member, f"{path}.{name}" if path else name, seen)
    # Of lists only those of data sources: a list of a million file names is not searched.
    elif isinstance(value, list | tuple) and value and isinstance(value[0], DataSource):
        for number, member in enumerate(value):
            yield from _walk(member, f"{path}.{number}", seen)
