"""Shards: lists of arrays, one list for each rank, that are summed to their owner or sent by it.

Everything goes pairwise, in pieces: MPI's own reduce-scatter is several times slower, and a piece
is all the memory that this needs.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from .transport import Transport

# Of each rank's shard in one exchange: what is received has to be in the cache when it is added or
# copied. Pieces of 4 MB take three times as long on one machine.
_PIECE_BYTES = 1024 * 1024


class Shard:
    """Several arrays of one dtype as a flat one; the same on all ranks wherever the arrays lie."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []
        self.stops: list[int] = []

    @property
    def size(self) -> int:
        return self.stops[-1] if self.stops else 0

    def append(self, array: np.ndarray) -> None:
        if array.size:
            self.arrays.append(array.reshape(-1))
            self.stops.append(self.size + array.size)

    def parts(self, start: int, stop: int) -> list[np.ndarray]:
        """Views of the elements from `start` to `stop`."""
        found = []
        k = bisect.bisect_right(self.stops, start)
        while k < len(self.arrays) and self.stops[k] - self.arrays[k].size < stop:
            first = self.stops[k] - self.arrays[k].size
            found.append(self.arrays[k][max(start - first, 0) : stop - first])
            k += 1
        return found

    def read(self, start: int, stop: int, dtype: np.dtype) -> np.ndarray:
        """The elements from `start` to `stop`: a view where they lie together."""
        parts = self.parts(start, stop)
        if not parts:
            return np.empty(0, dtype)
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)).astype(dtype, copy=False)

    def write(self, start: int, values: np.ndarray) -> None:
        at = 0
        for part in self.parts(start, start + values.size):
            part[...] = values[at : at + part.size]
            at += part.size


def sum_to_owners(shards: Sequence[Shard], transport: Transport, scale: float) -> None:
    """shards[rank] = sum over ranks of it, in their order, times `scale`; pairwise, in pieces."""
    dtype, step = _dtype_and_step(shards)
    if dtype == np.float16:
        dtype = np.dtype(np.float32)  # it would overflow
    for at in range(0, max(shard.size for shard in shards), step):
        parts = [shard.read(at, at + step, dtype) for shard in shards]
        received = np.empty((transport.size, parts[transport.rank].size), dtype)
        transport.all_to_all(parts, list(received))
        total = received[0]
        for other in received[1:]:
            total += other
        if scale != 1:
            np.multiply(total, scale, out=total)
        shards[transport.rank].write(at, total)


def send_to_all(shards: Sequence[Shard], transport: Transport) -> None:
    """shards[r] = that of rank r, on all ranks."""
    dtype, step = _dtype_and_step(shards)
    for at in range(0, max(shard.size for shard in shards), step):
        mine = shards[transport.rank].read(at, at + step, dtype)
        received = [np.empty(max(0, min(shard.size - at, step)), dtype) for shard in shards]
        transport.all_to_all([mine] * transport.size, received)
        for r, values in enumerate(received):
            if r != transport.rank:
                shards[r].write(at, values)


def _dtype_and_step(shards: Sequence[Shard]) -> tuple[np.dtype, int]:
    dtype = next((shard.arrays[0].dtype for shard in shards if shard.arrays), np.dtype(np.float32))
    return dtype, _PIECE_BYTES // dtype.itemsize


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
