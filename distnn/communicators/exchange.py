"""Lists of arrays as ranks exchange them: their names, which have values, and their memory."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import lru_cache
from operator import is_

import numpy as np

from ..ndarray import NdArray
from ..parameter_slab import attached
from .exact_sum import exact_sum
from .header import Schedule
from .transport import Transport

# Arrays below this are packed together: a message costs a few microseconds whatever its size.
_PACKED_BYTES = 64 * 1024


class Reducer:
    """A way to sum arrays over ranks other than the transport's own; one object for each rank."""

    def check(self, operation: str, ranks: Sequence[int]) -> None:
        """Raise ArgumentError where this cannot sum over a group of these ranks."""

    def describe(self) -> str:
        """Name and settings, which must be equal on all ranks."""
        raise NotImplementedError

    def reduce(self, items: Sequence[NdArray], transport: Transport, scale: float) -> None:
        """Sum the arrays over ranks, in place, times `scale`; on the communication thread."""
        raise NotImplementedError


class Description:
    """What ranks compare of a list of arrays; it does not keep them alive."""

    def __init__(self, items: Sequence[NdArray]) -> None:
        self._items = [weakref.ref(item) for item in items]
        self._storages = [weakref.ref(item._storage) for item in items]
        self._dtypes = [item.dtype for item in items]
        self.floats = all(dtype.kind == "f" for dtype in self._dtypes)
        self.entries = [_describe(item) for item in items]
        self.nbytes = sum(item.size * item.dtype.itemsize for item in items)
        self._schedules: dict[tuple[str, ...], Schedule] = {}

    def fits(self, items: Sequence[NdArray]) -> bool:
        """Whether these are the arrays, as they were described."""
        return (
            len(items) == len(self._items)
            and all(map(is_, items, [item() for item in self._items]))
            and all(map(is_, [item._storage for item in items], [s() for s in self._storages]))
            and all(map(is_, [item.dtype for item in items], self._dtypes))
        )

    def schedule(self, items: Sequence[NdArray], operation: str, *settings: str) -> Schedule:
        """The schedule of an operation on them, in which neighbours are exchanged as one."""
        key = (operation, *settings)
        if key not in self._schedules:
            entries = [*self.entries, *settings]
            self._schedules[key] = Schedule(operation, entries, layout=_layout(items))
        return self._schedules[key]


def _layout(items: Sequence[NdArray]) -> str:
    """Where parameters lie in their slabs: ranks must join the same neighbours."""
    starts: dict[int, int] = {}
    places = []
    for item in items:
        home = item._storage.home
        if home is not None:
            places.append(home.start - starts.setdefault(id(home.memory), home.start))
    return " ".join(map(str, places))


class Arrays:
    """Arrays in the order in which all ranks have them."""

    def __init__(self, items: Sequence[NdArray], description: Description | None = None) -> None:
        self.items = list(items)
        self.description = description or Description(self.items)

    @property
    def entries(self) -> list[str]:
        """Name, shape and dtype of each."""
        return self.description.entries

    def schedule(self, operation: str, *settings: str) -> Schedule:
        """The schedule of an operation on them, in which neighbours are exchanged as one."""
        return self.description.schedule(self.items, operation, *settings)

    def present(self) -> list[bool]:
        """For each array whether it has values here."""
        return [not item._storage.zeroing for item in self.items]

    def memory(self) -> list[np.ndarray]:
        """The arrays' memory, with pending values written."""
        return [item._view(item._storage.materialize()) for item in self.items]

    def mark_written(self) -> None:
        """Note that all arrays have new values."""
        for item in self.items:
            item._storage.written()


def present_anywhere(transport: Transport, incomplete: bool, present: Sequence[bool]) -> list[bool]:
    """For each array whether some rank has values for it; all ranks call it.

    Args:
        incomplete: whether any rank lacks some, as the header said.
        present: whether this one has them.
    """
    if not incomplete:
        return [True] * len(present)
    flags = np.array(present, np.uint8)
    transport.all_reduce(flags, "max")
    return flags.astype(bool).tolist()


def _describe(item: NdArray) -> str:
    """Name, shape and dtype, as errors say it."""
    home = item._storage.home
    return _description("" if home is None else f"{home.name} ", item.shape, item.dtype)


@lru_cache(4096)  # every call of a collective describes its arrays, and dtypes are slow to print
def _description(name: str, shape: tuple[int, ...], dtype: np.dtype) -> str:
    return f"{name}{shape} {dtype}"


def ranges(items: Sequence[NdArray]) -> list[np.ndarray]:
    """The memory of arrays as few contiguous ranges: neighbours in a slab are one."""
    found: list[np.ndarray] = []
    start = 0
    last = None  # the slot in which the range from `start` ends; not yet in `found`
    for item in items:
        array = item._storage.materialize()
        slot = attached(item)
        if last is not None:
            if (
                slot is not None
                and slot.memory is last.memory
                and slot.start == slot.block.aligned(last.stop)
            ):
                last = slot
                continue
            found.append(last.memory[start : last.stop])
        last = slot
        if slot is None:
            found.append(item._view(array).reshape(-1))
        else:
            start = slot.start
    if last is not None:
        found.append(last.memory[start : last.stop])
    return found


def reduce_arrays(
    arrays: Arrays,
    written: Sequence[bool],
    transport: Transport,
    scale: float,
    reducer: Reducer | None = None,
) -> None:
    """Sum the written arrays over ranks, in place, times `scale`."""
    items = [item for item, w in zip(arrays.items, written, strict=True) if w]
    if reducer is None:
        reduce_ranges(ranges(items), transport, scale)
    elif items:
        reducer.reduce(items, transport, scale)
    for item in items:
        item._storage.written()


def sum_exactly(
    arrays: Arrays, written: Sequence[bool], transport: Transport, division: bool
) -> None:
    """As reduce_arrays, by exact sums (sums of integers are exact as they are)."""
    items = [item for item, w in zip(arrays.items, written, strict=True) if w]
    memory = [item._view(item._storage.materialize()) for item in items]
    floats = [m for m in memory if m.dtype.kind == "f"]
    divisors = [transport.size if division else 1] * len(floats)
    exact_sum([[m] for m in floats], floats, transport.size, divisors, transport)
    reduce_ranges([m.reshape(-1) for m in memory if m.dtype.kind != "f"], transport, 1)
    for item in items:
        item._storage.written()


def reduce_ranges(memory: Sequence[np.ndarray], transport: Transport, scale: float) -> None:
    """Sum flat arrays over ranks, in place, times `scale`; small ones travel together."""
    small: dict[np.dtype, list[np.ndarray]] = {}
    for part in memory:
        if part.dtype == np.float16:
            # MPI has no fast sum of it, and it would overflow.
            small.setdefault(np.dtype(np.float32), []).append(part)
        elif part.nbytes < _PACKED_BYTES:
            small.setdefault(part.dtype, []).append(part)
        else:
            transport.all_reduce(part, "sum")
            _scaled(part, scale)
    for dtype, parts in small.items():
        packed = parts[0] if len(parts) == 1 and parts[0].dtype == dtype else None
        if packed is None:
            packed = np.concatenate([part.astype(dtype, copy=False) for part in parts])
        transport.all_reduce(packed, "sum")
        _scaled(packed, scale)
        if packed is not parts[0]:
            at = 0
            for part in parts:
                part[...] = packed[at : at + part.size]
                at += part.size


def _scaled(part: np.ndarray, scale: float) -> None:
    if scale != 1:
        np.multiply(part, scale, out=part)
