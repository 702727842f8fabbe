"""Batches: samples of a data source, stacked; epochs, and the state to go on from.

Knows neither threads nor callbacks: `make` returns the next batch with all that changes by it, so
that it may be called ahead of the user's `next()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import ArgumentError, ShapeError
from .generators import check_generator_states, get_generator_states, set_generator_states
from .source import DataSource, check_source

_STATE = ("size", "shuffle", "epoch", "position", "source", "epoch_generators", "generators")


class Batch(NamedTuple):
    """Arrays of a batch; after it: the position, whether the epoch ended, and the whole state."""

    arrays: tuple[np.ndarray, ...]
    position: int
    epoch_ended: bool
    state: dict[str, Any]


class Cancelled(Exception):
    """`make` was told to stop."""


class Batches:
    """Makes the batches of a source one after the other.

    At the end of an epoch the batch in progress is filled up with the first samples of the next
    one. With `stop_exhausted` a batch that would need them is not made, and `make` returns None.
    """

    def __init__(self, source: DataSource, batch_size: int, stop_exhausted: bool) -> None:
        check_source("DataIterator", "data_source", source)
        if batch_size < 1:
            raise ArgumentError(
                f"[DataIterator] batch_size is {batch_size}; pass the number of samples per "
                "batch, 1 or more"
            )
        if batch_size > source.size:
            raise ArgumentError(
                f"[DataIterator] batch_size is {batch_size} but the data has {source.size} "
                f"samples; pass a batch_size of {source.size} or less"
            )
        self.source = source
        self.batch_size = batch_size
        self.stop_exhausted = stop_exhausted
        self.epoch = 0
        self.position = 0
        self._columns: list[np.ndarray] = []
        self._row = 0  # how many rows of them are filled
        self._cancelled = False
        self._variables = list(source.variables or ())
        self._epoch_generators = get_generator_states(source)  # before the epoch's order is drawn
        source.reset()
        self._state = self.get_state()

    def make(self) -> Batch | None:
        """The next batch; None if the data are exhausted.

        If loading a sample raises, the next call goes on at that sample.
        """
        size = self.source.size
        if self.stop_exhausted and self.position - self._row + self.batch_size > size:
            return None
        while True:
            if self.position == size and not self.stop_exhausted:
                self._next_epoch()
            if self._row == self.batch_size:
                break
            if self._cancelled:
                raise Cancelled
            self._write(self._row, self._next_sample())
            self._row += 1
            self.position += 1
        arrays = tuple(self._columns)
        self._columns, self._row = [], 0
        before, self._state = self._state, self.get_state()
        return Batch(arrays, self.position, self.epoch != before["epoch"], self._state)

    def cancel(self) -> None:
        """Make a call of `make` in progress on another thread, and all later ones, raise."""
        self._cancelled = True

    def _next_sample(self) -> Sequence[Any]:
        # A slice may have reset the source it shares with this iterator.
        self.source._position = self.position
        return self.source.next()

    def _next_epoch(self) -> None:
        self._epoch_generators = get_generator_states(self.source)
        self.source.reset()
        self.source.apply_order()
        self.epoch += 1
        self.position = 0

    # -- stacking -----------------------------------------------------------------------------

    def _write(self, row: int, sample: Sequence[Any]) -> None:
        """Copy a sample into row `row` of the batch's arrays, which the first one shapes."""
        variables = self._variables
        number = len(sample) if hasattr(sample, "__len__") else None
        if number != len(variables):
            arrays = repr(sample) if number is None else f"{number} arrays"
            raise ArgumentError(
                f"[DataIterator] {self._place()} is {arrays} but the data source has the "
                f"{len(variables)} variables {variables}; return one array for each, the same "
                "number for every sample"
            )
        values = [np.asarray(value) for value in sample]
        if row == 0:
            self._columns = [np.empty((self.batch_size, *v.shape), v.dtype) for v in values]
        for i, value in enumerate(values):
            column = self._columns[i]
            if value.shape != column.shape[1:]:
                raise ShapeError(
                    f"[DataIterator] {variables[i]!r} of {self._place()} has shape {value.shape} "
                    f"but the samples before it in the batch have {column.shape[1:]}; return "
                    "arrays of one shape, or use batch_size=1"
                )
            if value.dtype != column.dtype:
                dtype = np.promote_types(column.dtype, value.dtype)
                column = self._columns[i] = column.astype(dtype)
            column[row] = value

    def _place(self) -> str:
        order = self.source.order
        known = isinstance(order, np.ndarray | list) and len(order) == self.source.size
        sample = f" (sample {order[self.position]})" if known else ""
        return f"position {self.position} of epoch {self.epoch}{sample}"

    # -- state --------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """All that the following batches depend on."""
        return {
            "size": self.source.size,
            "shuffle": bool(self.source.shuffle),
            "epoch": self.epoch,
            "position": self.position,
            "source": self.source.get_state(),
            "epoch_generators": self._epoch_generators,
            "generators": get_generator_states(self.source),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on as the iterator did from which `state` was taken."""
        self.check_state(state)
        set_generator_states(self.source, state["epoch_generators"])
        self.source.set_state(state["source"])
        set_generator_states(self.source, state["generators"])
        self._epoch_generators = state["epoch_generators"]
        self.epoch = state["epoch"]
        self.position = state["position"]
        self._columns, self._row = [], 0
        self._state = self.get_state()

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ArgumentError if `state` was not taken of such a source."""
        function = "DataIterator.set_state"
        missing = sorted(set(_STATE) - set(state))
        if missing:
            raise ArgumentError(
                f"[{function}] state lacks {missing}; pass what get_state() returned"
            )
        for name, here in (("size", self.source.size), ("shuffle", bool(self.source.shuffle))):
            if state[name] != here:
                raise ArgumentError(
                    f"[{function}] state was taken of data with {name} {state[name]} but here it "
                    f"is {here}; make the data source as it was when the state was taken"
                )
        for name in ("epoch_generators", "generators"):
            check_generator_states(function, self.source, state[name])
