"""Shards: lists of arrays, one list for each rank, that are summed to their owner or sent by it.

All shards at once go pairwise, in pieces: MPI's own reduce-scatter is several times slower, and a
piece is all the memory that this needs. Arrays that come bucket by bucket, and so are of one owner
or two at a time, go by MPI's reduce, in which the owner does not receive the parts of all ranks.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..dtypes import dtype_of_sums
from ..errors import CommunicatorError
from ..ndarray import NdArray
from ..storage import Storage
from .exchange import Reducer, ranges, reduce_ranges
from .transport import Transport

# Of each rank's shard in one exchange: what is received has to be in the cache when it is added or
# copied. Pieces of 4 MB take three times as long on one machine.
_PIECE_BYTES = 1024 * 1024
_PIECE_BYTES_GPU = 32 * 1024 * 1024  # long beside the start of an exchange


class Shard:
    """Several arrays of one dtype as a flat one; the same on all ranks wherever the arrays lie.

    Args:
        module: numpy, or cupy for arrays of a GPU.
    """

    def __init__(self, module: Any = np) -> None:
        self.module = module
        self.arrays: list[Any] = []
        self.stops: list[int] = []

    @property
    def size(self) -> int:
        return self.stops[-1] if self.stops else 0

    def append(self, array: Any) -> None:
        if array.size:
            self.arrays.append(array.reshape(-1))
            self.stops.append(self.size + array.size)

    def parts(self, start: int, stop: int) -> list[Any]:
        """Views of the elements from `start` to `stop`."""
        found = []
        k = bisect.bisect_right(self.stops, start)
        while k < len(self.arrays) and self.stops[k] - self.arrays[k].size < stop:
            first = self.stops[k] - self.arrays[k].size
            found.append(self.arrays[k][max(start - first, 0) : stop - first])
            k += 1
        return found

    def read(self, start: int, stop: int, dtype: np.dtype) -> Any:
        """The elements from `start` to `stop`: a view where they lie together."""
        parts = self.parts(start, stop)
        if not parts:
            return self.module.empty(0, dtype)
        joined = parts[0] if len(parts) == 1 else self.module.concatenate(parts)
        return joined.astype(dtype, copy=False)

    def write(self, start: int, values: Any) -> None:
        at = 0
        for part in self.parts(start, start + values.size):
            part[...] = values[at : at + part.size]
            at += part.size


def sum_to_owners(shards: Sequence[Shard], transport: Transport, scale: float) -> None:
    """shards[rank] = sum over ranks of it, in their order, times `scale`; pairwise, in pieces."""
    dtype, step = _dtype_and_step(shards)
    dtype = dtype_of_sums(dtype)
    for at in range(0, max(shard.size for shard in shards), step):
        parts = [shard.read(at, at + step, dtype) for shard in shards]
        shape = (transport.size, parts[transport.rank].size)
        received = shards[0].module.empty(shape, dtype)
        transport.all_to_all(parts, list(received))
        total = received[0]
        for other in received[1:]:
            total += other
        if scale != 1:
            total *= scale
        shards[transport.rank].write(at, total)


class SumToOwners(Reducer):
    """Sums of gradients on the ranks that own them, for the buckets of a callback."""

    def __init__(self, owners: Mapping[Storage, int]) -> None:
        self._owners = owners  # as they are at each sum, not as they were here

    def describe(self) -> str:
        return f"sums to owners {list(self._owners.values())}"

    def reduce(self, items: Sequence[NdArray], transport: Transport, scale: float) -> None:
        shards: dict[int, list[NdArray]] = {}
        for item in items:
            owner = self._owners.get(item._storage)
            if owner is None:
                raise CommunicatorError(
                    "[reduce_callback] reduces the gradient of a parameter that is not registered "
                    "any more; make the callback again after set_parameters or remove_parameters"
                )
            shards.setdefault(owner, []).append(item)
        for owner, shard in shards.items():
            reduce_ranges(ranges(shard), transport, scale, owner)


def send_to_all(shards: Sequence[Shard], transport: Transport) -> None:
    """shards[r] = that of rank r, on all ranks."""
    dtype, step = _dtype_and_step(shards)
    for at in range(0, max(shard.size for shard in shards), step):
        mine = shards[transport.rank].read(at, at + step, dtype)
        received = [
            shard.module.empty(max(0, min(shard.size - at, step)), dtype) for shard in shards
        ]
        transport.all_to_all([mine] * transport.size, received)
        for r, values in enumerate(received):
            if r != transport.rank:
                shards[r].write(at, values)


def _dtype_and_step(shards: Sequence[Shard]) -> tuple[np.dtype, int]:
    dtype = next((shard.arrays[0].dtype for shard in shards if shard.arrays), np.dtype(np.float32))
    piece = _PIECE_BYTES if shards[0].module is np else _PIECE_BYTES_GPU
    return dtype, piece // dtype.itemsize


def assign(sizes: Sequence[int], load: Sequence[int]) -> list[int]:
    """Owners of new parameters: neighbours together, so that all ranks have about equally much.

    Args:
        sizes: elements of each new parameter.
        load: elements that each rank has.
    Returns: a rank for each, ascending: that whose room the parameter's middle falls into.

    >>> assign([10, 10, 10, 30], [0, 0])
    [0, 0, 0, 1]
    >>> assign([10, 10], [40, 0, 30])
    [1, 1]
    """
    share = (sum(sizes) + sum(load)) / len(load)
    room = np.maximum(share - np.asarray(load, np.float64), 0)
    ends = np.cumsum(room) * (sum(sizes) / max(room.sum(), 1e-300))
    middles = np.cumsum(sizes) - np.asarray(sizes) / 2
    return np.minimum(np.searchsorted(ends, middles), len(load) - 1).tolist()
