"""Sources that stand on another source: a range of its positions, and a copy in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError
from .ordered_source import OrderedDataSource, _Order
from .source import DataSource, RandomGenerator, check_source

logger = logging.getLogger("distnn")

MAX_CACHE_BYTES = 1 << 30  # NNabla's data_source_buffer_max_size


class SlicedDataSource(DataSource):
    """Positions slice_start ... slice_end - 1 of another source, in that source's order.

    All slices of a source that numbers its orders see the same order in the same epoch, so slices
    that do not overlap share no sample in it, whichever runs ahead. A source that makes its order
    in `reset()` has one order at a time: there, use one slice per process.

    Args:
        data_source: the source.
        shuffle: what the property `shuffle` tells; the order is the source's.
        rng: kept for NNabla's scripts; the order is the source's.
        slice_start: first position.
        slice_end: one after the last position.
    Raises: ArgumentError unless 0 <= slice_start < slice_end <= data_source.size.

    >>> from distnn.data import SimpleDataSource
    >>> part = SlicedDataSource(SimpleDataSource(lambda i: (i,), 10), slice_start=6, slice_end=9)
    >>> part.size, [part.next() for _ in range(3)]
    (3, [(6,), (7,), (8,)])
    """

    def __init__(
        self,
        data_source: DataSource,
        shuffle: bool = False,
        rng: RandomGenerator | None = None,
        slice_start: int | None = None,
        slice_end: int | None = None,
    ) -> None:
        check_source("SlicedDataSource", "data_source", data_source)
        if slice_start is None or slice_end is None:
            raise ArgumentError(
                f"[SlicedDataSource] slice_start is {slice_start} and slice_end is {slice_end}; "
                "pass both"
            )
        if not 0 <= slice_start < slice_end <= data_source.size:
            raise ArgumentError(
                f"[SlicedDataSource] slice_start is {slice_start} and slice_end is {slice_end} but "
                f"the data has {data_source.size} samples; pass 0 <= slice_start < slice_end <= "
                f"{data_source.size}"
            )
        super().__init__(shuffle, data_source._rng if rng is None else rng)
        self._data_source = data_source
        self._variables = data_source.variables
        self._size = slice_end - slice_start
        self._slice_start = slice_start
        self._slice_end = slice_end
        self._generation = 0

    def _get_data(self, position: int) -> Sequence[Any]:
        return self._get_data_of_generation(position, self._generation)

    def _get_data_of_generation(self, position: int, generation: int) -> Sequence[Any]:
        return self._data_source._get_data_of_generation(self._slice_start + position, generation)

    def reset(self) -> None:
        """Go back to position 0; a source that makes its order in `reset()` makes a new one."""
        self._data_source.reset()
        super().reset()

    def apply_order(self) -> None:
        """Go on to the source's next generation."""
        self._generate_order(self._generation + 1)
        self._generation += 1

    def _generate_order(self, generation: int) -> None:
        self._data_source._generate_order(generation)

    def _order_of(self, generation: int) -> Any:
        order = self._data_source._order_of(generation)
        return None if order is None else order[self._slice_start : self._slice_end]

    def _order_state(self, generation: int) -> Any:
        return self._data_source._order_state(generation)

    def _restore_order(self, generation: int, state: Any) -> None:
        self._data_source._restore_order(generation, state)


class DataSourceWithMemoryCache(OrderedDataSource):
    """Loads each sample of another source once and keeps a copy in memory.

    The first epoch has the source's present order. If `shuffle` is set each later epoch has a new
    order of the cache's own. What is random in loading a sample is drawn once.

    Args:
        data_source: the source. Its `reset` is not called any more.
        shuffle: whether the order changes from epoch to epoch.
        rng: numpy generator of the orders; default `numpy.random.RandomState(313)`.

    >>> from distnn.data import SimpleDataSource
    >>> cached = DataSourceWithMemoryCache(SimpleDataSource(lambda i: (i, i * i), 10))
    >>> cached.next(), cached.next()
    ((array(0), array(0)), (array(1), array(1)))
    """

    def __init__(
        self, data_source: DataSource, shuffle: bool = False, rng: RandomGenerator | None = None
    ) -> None:
        check_source("DataSourceWithMemoryCache", "data_source", data_source)
        self._data_source = data_source
        self._source_generation = data_source._generation
        self._cache: list[tuple[np.ndarray, ...] | None] = [None] * data_source.size
        super().__init__(data_source.size, data_source.variables or (), shuffle, rng)

    def _draw(self, generation: int) -> _Order:
        if generation == 0:
            return _Order(np.arange(self._size), None)
        return super()._draw(generation)

    def _load(self, index: int) -> Sequence[Any]:
        sample = self._cache[index]
        if sample is None:
            data = self._data_source._get_data_of_generation(index, self._source_generation)
            if data is None:
                return data  # refused where the batch is made, with its place
            # Copies: a source may return views of one buffer that it fills anew for each sample.
            sample = self._cache[index] = tuple(np.array(array) for array in data)
        return sample

    def close(self) -> None:
        """Close the source as well."""
        self._data_source.close()
        super().close()


def with_memory_cache(
    data_source: DataSource, shuffle: bool, rng: RandomGenerator | None
) -> DataSource:
    """The source with a memory cache, or itself where its samples do not fit `MAX_CACHE_BYTES`.

    The first sample is loaded to learn the size.
    """
    cached = DataSourceWithMemoryCache(data_source, shuffle, rng)
    needed = sum(array.nbytes for array in cached._get_data(0)) * cached.size
    if needed < MAX_CACHE_BYTES:
        return cached
    logger.info(
        "[data_iterator] the data need %.3g GiB of memory, more than the memory cache's %.3g GiB: "
        "samples are loaded anew in every epoch",
        needed / 2**30,
        MAX_CACHE_BYTES / 2**30,
    )
    return data_source
