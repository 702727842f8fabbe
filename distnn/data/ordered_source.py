"""Sources whose orders are numbered, one generation per epoch: of a function, of several sources.

A generation is drawn once and kept for a while: slices of one source that are in different epochs
each find the order of theirs, and all slices of one epoch see the same order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ..errors import ArgumentError, DtypeError
from .generators import get_generator_state, set_generator_state
from .source import DataSource, RandomGenerator, check_source

KEPT_GENERATIONS = 15  # as many as NNabla keeps


class _Order(NamedTuple):
    indices: np.ndarray
    drawn_from: dict[str, Any] | None  # the generator's state before the draw; None if in sequence


class OrderedDataSource(DataSource):
    """Base of the sources that number their orders; a subclass implements `_load(index)`."""

    def __init__(
        self, size: int, variables: Sequence[str], shuffle: bool, rng: RandomGenerator | None
    ) -> None:
        super().__init__(shuffle, rng)
        self._size = size
        self._variables = tuple(variables)
        self._generation = 0
        self._orders: dict[int, _Order] = {}
        self._lock = threading.Lock()  # slices of this source may prefetch on several threads
        self._generate_order(0)

    def _load(self, index: int) -> Sequence[Any]:
        """The sample of number `index`, whatever the order."""
        raise NotImplementedError

    def _get_data(self, position: int) -> Sequence[Any]:
        return self._get_data_of_generation(position, self._generation)

    def _get_data_of_generation(self, position: int, generation: int) -> Sequence[Any]:
        # int: with numpy 2 a float32 array times a numpy int64 is float64, times an int float32
        return self._load(int(self._order_of(generation)[position]))

    def apply_order(self) -> None:
        """Go on to the next generation; its order is drawn unless a slice has done so."""
        self._generate_order(self._generation + 1)
        self._generation += 1

    def _generate_order(self, generation: int) -> None:
        with self._lock:
            if generation in self._orders:
                return
            if self._orders and generation < min(self._orders):
                self._raise_not_kept(generation)
            self._orders[generation] = self._draw(generation)
            while len(self._orders) > KEPT_GENERATIONS:
                del self._orders[min(self._orders)]

    def _draw(self, generation: int) -> _Order:
        if not self._shuffle:
            return _Order(np.arange(self._size), None)
        drawn_from = get_generator_state(self._rng)
        return _Order(self._rng.permutation(self._size), drawn_from)

    def _order_of(self, generation: int) -> np.ndarray:
        order = self._orders.get(generation)
        if order is None:
            self._raise_not_kept(generation)
        return order.indices

    def _raise_not_kept(self, generation: int) -> NoReturn:
        raise ArgumentError(
            f"[{type(self).__name__}] the order of epoch {generation} is wanted but those of "
            f"epochs {min(self._orders)} to {max(self._orders)} are kept; use the slices of one "
            f"source within {KEPT_GENERATIONS} epochs of each other, and make them before its "
            "first epoch"
        )

    def _order_state(self, generation: int) -> Any:
        order = self._orders.get(generation)
        return None if order is None else order.drawn_from

    def _restore_order(self, generation: int, state: Any) -> None:
        if state is None:
            order = _Order(np.arange(self._size), None)
        else:
            set_generator_state(self._rng, state)
            order = _Order(self._rng.permutation(self._size), state)
        with self._lock:
            self._orders = {generation: order}  # later ones may be of another history


class SimpleDataSource(OrderedDataSource):
    """Samples of a function of their number.

    Args:
        load_func: takes a number from 0 to num_examples - 1, returns a tuple of arrays or numbers.
            It is called for sample 0 at once, to learn how many arrays there are.
        num_examples: number of samples.
        shuffle, rng: as of DataSource. The order of the first epoch is
            `RandomState(313).permutation(num_examples)` by default.
    Raises: DtypeError if load_func is no function or returns no tuple; ArgumentError if
        num_examples is less than 1.

    >>> source = SimpleDataSource(lambda i: (i, i * i), 10, shuffle=True)
    >>> source.variables
    ('x0', 'x1')
    >>> source.next(), source.next()
    ((5, 25), (3, 9))
    """

    def __init__(
        self,
        load_func: Callable[[int], Sequence[Any]],
        num_examples: int,
        shuffle: bool = False,
        rng: RandomGenerator | None = None,
    ) -> None:
        if not callable(load_func):
            raise DtypeError(
                f"[SimpleDataSource] load_func is of type {type(load_func).__name__}; pass a "
                "function that takes the number of a sample and returns a tuple of arrays"
            )
        if num_examples < 1:
            raise ArgumentError(
                f"[SimpleDataSource] num_examples is {num_examples}; pass the number of samples, "
                "1 or more"
            )
        sample = load_func(0)
        rows = isinstance(sample, np.ndarray) and sample.ndim > 0  # NNabla takes each as an array
        if not (isinstance(sample, tuple | list) or rows) or len(sample) == 0:
            raise DtypeError(
                f"[SimpleDataSource] load_func(0) returned {_kind(sample)}; return a tuple of "
                "arrays, `return x,` for a single one"
            )
        self._load_func = load_func
        super().__init__(num_examples, [f"x{i}" for i in range(len(sample))], shuffle, rng)

    def _load(self, index: int) -> Sequence[Any]:
        return self._load_func(index)


def _kind(sample: object) -> str:
    return "None" if sample is None else f"an object of type {type(sample).__name__}"


class ConcatDataSource(OrderedDataSource):
    """The samples of several sources one after the other, shuffled as a whole.

    Args:
        data_source_list: sources with the same number of variables; names are the first one's.
        shuffle, rng: as of DataSource.
    Raises: ArgumentError if the list is empty or the numbers of variables differ.

    >>> parts = [SimpleDataSource(lambda i: (i,), 2), SimpleDataSource(lambda i: (i + 10,), 2)]
    >>> source = ConcatDataSource(parts, shuffle=False)
    >>> [source.next() for _ in range(source.size)]
    [(0,), (1,), (10,), (11,)]
    """

    def __init__(
        self,
        data_source_list: Sequence[DataSource],
        shuffle: bool = True,
        rng: RandomGenerator | None = None,
    ) -> None:
        sources = list(data_source_list)
        if not sources:
            raise ArgumentError("[ConcatDataSource] data_source_list is empty; pass a source")
        for number, source in enumerate(sources):
            check_source("ConcatDataSource", f"data_source_list[{number}]", source)
        variables = list(sources[0].variables or ())
        for number, source in enumerate(sources):
            if len(source.variables or ()) != len(variables):
                raise ArgumentError(
                    f"[ConcatDataSource] data_source_list[{number}] has the variables "
                    f"{list(source.variables or ())} but data_source_list[0] has {variables}; pass "
                    "sources whose samples have the same number of arrays"
                )
        self._data_sources = sources
        self._ends = np.cumsum([source.size for source in sources])
        super().__init__(int(self._ends[-1]), variables, shuffle, rng)

    def _load(self, index: int) -> Sequence[Any]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        source = self._data_sources[part]
        return source._get_data(index - int(self._ends[part]) + source.size)

    def close(self) -> None:
        for source in self._data_sources:
            source.close()
        super().close()
