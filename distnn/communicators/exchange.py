"""Lists of arrays as ranks exchange them: their names, which have values, and their memory."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import lru_cache
from operator import is_
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import transfer
from ..context import current_backend
from ..dtypes import dtype_of_sums, is_float, is_half
from ..ndarray import NdArray
from ..parameter_slab import attached
from ..storage import Storage
from .exact_sum import exact_sum
from .half_precision import sum_halves
from .header import Schedule
from .transport import Transport

if TYPE_CHECKING:
    from ..backend import Backend

# Arrays below this are packed together: a message costs a few microseconds whatever its size.
_PACKED_BYTES = 64 * 1024
_HOST = "the host"
_OF_HOST = (np.ndarray, type(None))


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


class Ranges:
    """The memory of some arrays as few contiguous ranges, remembered while they stay in slabs."""

    def __init__(self) -> None:
        self._places: list[np.ndarray] = []
        self._found: list[np.ndarray] = []

    def of(self, items: Sequence[NdArray]) -> list[np.ndarray]:
        """The memory of `items`, with pending values written; neighbours in a slab are one."""
        if len(items) == 1:
            return [items[0]._view(items[0]._storage.materialize()).reshape(-1)]
        if len(items) == len(self._places):
            storages = [item._storage for item in items]
            pending = [storage.pending for storage in storages]
            if (
                pending.count(None) == len(pending)
                and all(map(is_, [storage.array for storage in storages], self._places))
                and not (transfer.device_used and any(s.host is not None for s in storages))
            ):
                return self._found
        found = ranges(items)
        self._places = []
        if items and items[0]._storage.home is not None:
            slots = [attached(item) for item in items]
            if None not in slots:  # slabs live on anyway; other memory may be let go
                self._places = [slot.array for slot in slots if slot is not None]
                self._found = found
        return found


class Description:
    """What ranks compare of a list of arrays; it does not keep them alive."""

    def __init__(self, items: Sequence[NdArray]) -> None:
        storages = [item._storage for item in items]
        self._dtypes = [storage.dtype for storage in storages]
        # Who is who is known by id, until one of them dies: asking weak references takes longer.
        self._ids = [*map(id, items), *map(id, storages)]
        self._alive = alive = [True]
        self._references = [
            weakref.ref(each, lambda _: alive.clear()) for each in (*items, *storages)
        ]
        self._places = _on_host(items)
        self.on_host = all(self._places)
        self.floats = all(map(is_float, self._dtypes))
        self.entries = [_describe(item) for item in items]
        self.place = _HOST  # what ranks must agree on: NCCL and MPI do not meet
        self.problem = ""  # why they cannot be exchanged together
        if not self.on_host:
            self._note_devices([_device(item) for item in items])
        self.ranges = Ranges()
        # As they are summed.
        self.nbytes = sum(item.size * dtype_of_sums(item.dtype).itemsize for item in items)
        self._schedules: dict[tuple[str, ...], Schedule] = {}

    def _note_devices(self, devices: list[str]) -> None:
        other = next((i for i, device in enumerate(devices) if device != devices[0]), None)
        self.place = "a GPU" if other is None else "several devices"
        if other is not None:
            self.problem = (
                f"array 0 lies on {devices[0]} but array {other} on {devices[other]}; exchange the "
                "arrays of each device in a call of their own, or bring them to one"
            )

    def fits(self, items: Sequence[NdArray]) -> bool:
        """Whether these are the arrays, as they were described."""
        if len(items) != len(self._dtypes) or not self._alive:
            return False
        storages = [item._storage for item in items]
        return (
            [*map(id, items), *map(id, storages)] == self._ids
            and [storage.dtype for storage in storages] == self._dtypes
            and (not transfer.device_used or _on_host(items) == self._places)
        )

    def schedule(self, items: Sequence[NdArray], operation: str, *settings: str) -> Schedule:
        """The schedule of an operation on them, in which neighbours are exchanged as one."""
        key = (operation, *settings)
        if key not in self._schedules:
            entries = [*self.entries, *settings]
            self._schedules[key] = Schedule(
                operation,
                entries,
                layout=_layout(items),
                place=self.place,
                problem=self.problem,
            )
        return self._schedules[key]


def _on_host(items: Sequence[NdArray]) -> list[bool]:
    """Of each array whether its memory, if it has any yet, is on the host."""
    return [isinstance(item._storage.array, _OF_HOST) for item in items]


def _device(item: NdArray) -> str:
    array = item._storage.array
    return _HOST if array is None or transfer.on_host(array) else f"GPU {array.device.id}"


def _settle(storage: Storage, backend: Backend) -> None:
    """Give an array memory where the context computes, on the thread that computes.

    Memory of a GPU belongs to the stream of the thread that takes it.
    """
    array = storage.array
    if array is None:
        if storage.pending is not None:
            storage.allocate(storage.dtype, backend)
    elif transfer.on_host(array) and not (backend.holds(array) or _placed(storage)):
        storage.array = storage.converted(storage.dtype, backend)
        storage.host = array if storage.exported else None


def _placed(storage: Storage) -> bool:
    return storage.home is not None and storage.array is storage.home.array


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
        if transfer.device_used:
            backend = current_backend()
            for item in items:
                _settle(item._storage, backend)
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

    def memory(self) -> list[Any]:
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


def ranges(items: Sequence[NdArray]) -> list[Any]:
    """The memory of arrays as few contiguous ranges: neighbours in a slab are one."""
    found: list[Any] = []
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
    items = arrays.items
    if not all(written):
        items = [item for item, w in zip(items, written, strict=True) if w]
    if reducer is None:
        reduce_ranges(arrays.description.ranges.of(items), transport, scale)
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
    with transfer.staged([m for m in memory if is_float(m.dtype)]) as floats:
        divisors = [transport.size if division else 1] * len(floats)
        exact_sum([[m] for m in floats], floats, transport.size, divisors, transport)
    reduce_ranges([m.reshape(-1) for m in memory if not is_float(m.dtype)], transport, 1)
    for item in items:
        item._storage.written()


def reduce_ranges(
    memory: Sequence[Any], transport: Transport, scale: float, root: int | None = None
) -> None:
    """Sum flat arrays over ranks, in place, times `scale`; small ones travel together.

    Args:
        root: the only rank to get the sums; None: all ranks.
    """

    if len(memory) == 1 and not is_half(memory[0].dtype):
        _total(memory[0], transport, scale, root)
        return
    packets: dict[tuple[Any, np.dtype], list[Any]] = {}
    for part in memory:
        half = is_half(part.dtype)
        if half and part.nbytes >= _PACKED_BYTES and root is None and transfer.on_host(part):
            sum_halves(part, transport, scale)
        elif half or (part.nbytes < _PACKED_BYTES and len(memory) > 1):
            key = transfer.array_module(part), dtype_of_sums(part.dtype)
            packets.setdefault(key, []).append(part)
        else:
            _total(part, transport, scale, root)
    for (module, dtype), parts in packets.items():
        packed = parts[0] if len(parts) == 1 and parts[0].dtype == dtype else None
        if packed is None:
            packed = module.concatenate([part.astype(dtype, copy=False) for part in parts])
        _total(packed, transport, scale, root)
        if packed is not parts[0] and root in (None, transport.rank):
            at = 0
            with np.errstate(all="ignore"):  # as functions overflow, and as the other thread sums
                for part in parts:
                    part[...] = packed[at : at + part.size]
                    at += part.size


def _total(array: Any, transport: Transport, scale: float, root: int | None) -> None:
    if root is None:
        transport.all_reduce(array, "sum")
    else:
        transport.reduce(array, root)
    if scale != 1 and root in (None, transport.rank):
        with np.errstate(all="ignore"):
            array *= scale
