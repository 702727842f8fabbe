"""DataSource: samples by position, in an order that may change from epoch to epoch.

The base class of all sources; users subclass it. What makes batches of samples is in batches.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..context import DEFAULT_SEED
from ..errors import ArgumentError, DtypeError

RandomGenerator = np.random.RandomState | np.random.Generator
GENERATOR_TYPES = (np.random.RandomState, np.random.Generator)


class DataSource:
    """Samples by position 0 ... size - 1; subclass it to read data of your own.

    A subclass calls `super().__init__`, sets `self._size` and `self._variables` (a name for each
    array of a sample), and implements `_get_data(position)`. One that shuffles draws a new order in
    `reset()`, which is called at the beginning of every epoch, and calls `super().reset()` there.

    Args:
        shuffle: whether the order of the samples changes from epoch to epoch.
        rng: numpy generator of the orders; default `numpy.random.RandomState(313)`.
    Raises: DtypeError if rng is no generator.

    >>> import numpy as np
    >>> class Squares(DataSource):
    ...     def __init__(self, shuffle=False, rng=None):
    ...         super().__init__(shuffle, rng)
    ...         self._size = 5
    ...         self._variables = ("x", "y")
    ...         self.reset()
    ...     def reset(self):
    ...         self._indexes = self._rng.permutation(5) if self._shuffle else np.arange(5)
    ...         super().reset()
    ...     def _get_data(self, position):
    ...         i = int(self._indexes[position])
    ...         return i, i * i
    >>> source = Squares()
    >>> source.next(), source.next(), source.position
    ((0, 0), (1, 1), 2)
    """

    def __init__(self, shuffle: bool = False, rng: RandomGenerator | None = None) -> None:
        if rng is None:
            rng = np.random.RandomState(DEFAULT_SEED)
        elif not isinstance(rng, GENERATOR_TYPES):
            raise DtypeError(
                f"[{type(self).__name__}] rng is of type {type(rng).__name__}; pass a numpy "
                "generator, for example numpy.random.RandomState(313)"
            )
        self._rng: RandomGenerator = rng
        self._shuffle = shuffle
        self._variables: Sequence[str] | None = None
        self._size = 0
        self._position = 0
        self._generation = -1
        self._order: Any = None
        self._closed = False

    def _get_data(self, position: int) -> Sequence[Any]:
        """The sample at `position` of this epoch's order: one array (or number) per variable."""
        raise NotImplementedError(f"{type(self).__name__} must implement _get_data(position)")

    def next(self) -> Sequence[Any]:
        """The sample at the present position; moves on to the next."""
        data = self._get_data(self._position)
        self._position += 1
        return data

    def __next__(self) -> Sequence[Any]:
        return self.next()

    def reset(self) -> None:
        """Go back to position 0. Called at the beginning of every epoch."""
        self._position = 0

    def apply_order(self) -> None:
        """Go on to the next generation of orders. Called at the end of every epoch, after `reset`.

        Does nothing here. Sources that number their orders (generations) make the next one; so two
        slices of one source may be in different epochs.
        """

    @property
    def variables(self) -> Sequence[str] | None:
        """Names of the arrays of a sample."""
        return self._variables

    @property
    def size(self) -> int:
        """Number of samples."""
        return self._size

    @property
    def position(self) -> int:
        """Position in this epoch of the sample that `next` returns."""
        return self._position

    @property
    def shuffle(self) -> bool:
        """Whether the order changes from epoch to epoch; may be set, for the following epochs."""
        return self._shuffle

    @shuffle.setter
    def shuffle(self, value: bool) -> None:
        self._shuffle = value

    @property
    def order(self) -> Any:
        """Number of the sample at each position of this epoch, or None where it is not known."""
        return self._order_of(self._generation)

    def close(self) -> None:
        """Release what the source holds, files for example; a subclass may extend it."""
        self._closed = True

    def __enter__(self) -> DataSource:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- state, for checkpoints ---------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """What `set_state` needs to make this epoch's order again; random generators excepted.

        A source whose order does not come from `reset()` and numpy generators among its attributes
        alone (one that shuffles a list in place, say) overrides both to store and put back that
        order.
        """
        return {"generation": self._generation, "order": self._order_state(self._generation)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Make the order again of the epoch in which `state` was taken.

        The caller has put the generators back as they were when that epoch began, and puts them as
        they were when `state` was taken afterwards.
        """
        self._restore_order(state["generation"], state["order"])
        self._generation = state["generation"]

    # -- orders by generation: what slices and caches ask of the source they stand on ---------

    def _get_data_of_generation(self, position: int, generation: int) -> Sequence[Any]:
        return self._get_data(position)

    def _generate_order(self, generation: int) -> None:
        """Make the order of `generation` unless there is one."""

    def _order_of(self, generation: int) -> Any:
        return self._order

    def _order_state(self, generation: int) -> Any:
        """What `_restore_order` needs."""
        return None

    def _restore_order(self, generation: int, state: Any) -> None:
        self.reset()


def check_source(function: str, argument: str, source: object) -> None:
    """Raise unless `source` is a DataSource with samples and variables."""
    if not isinstance(source, DataSource):
        raise DtypeError(
            f"[{function}] {argument} is of type {type(source).__name__}; pass a DataSource, or "
            "use data_iterator_simple(load_func, num_examples, batch_size) for a function"
        )
    name = type(source).__name__
    if source.size < 1:
        raise ArgumentError(
            f"[{function}] {argument} ({name}) has size {source.size}; set self._size to the "
            "number of samples, 1 or more, in its __init__"
        )
    if not source.variables:
        raise ArgumentError(
            f"[{function}] {argument} ({name}) has the variables {source.variables}; "
            "set self._variables to a name for each array of a sample in its __init__"
        )
