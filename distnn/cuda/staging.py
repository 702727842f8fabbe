"""Staging: arrays of a device that are exchanged by way of the host.

For ranks that share a GPU, where NCCL is missing, and for exchanges that compute on the host
(exact sums, compression). Everything is queued on the current stream; the calling thread waits
for copies down, and before page-locked memory is used again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import cupy
import numpy as np

if TYPE_CHECKING:
    from ..communicators.transport import Transport

# Of a message: the next is copied down while one is exchanged.
_PIECE_BYTES = 4 * 1024 * 1024
_AHEAD = 2  # messages that are under way


class StagedRanks:
    """Ranks whose GPUs exchange through a transport of host memory.

    The methods are those of `communicators.transport.Transport`, for arrays of the device.
    """

    def __init__(self, host: Transport) -> None:
        self._host = host
        self._rank = host.rank

    def all_reduce(self, array: Any, operation: str) -> None:
        _in_pieces(array, lambda piece: self._host.all_reduce(piece, operation))

    def reduce(self, array: Any, root: int) -> None:
        _in_pieces(array, lambda piece: self._host.reduce(piece, root), up=self._rank == root)

    def broadcast(self, array: Any, root: int) -> None:
        here = self._rank == root
        # As bytes, which every transport knows.
        values = array.reshape(-1).view(np.uint8)
        _in_pieces(values, lambda piece: self._host.broadcast(piece, root), here, not here)

    def all_gather(self, array: Any, out: Any) -> None:
        with staged([array], up=False) as (mine,), staged([out], down=False) as (everybodys,):
            self._host.all_gather(_bytes(mine), _bytes(everybodys).reshape(len(out), -1))

    def reduce_scatter(self, parts: Any, out: Any) -> None:
        with staged([parts], up=False) as (mine,), staged([out], down=False) as (total,):
            self._host.reduce_scatter(mine, total)

    def all_to_all(self, parts: Sequence[Any], out: Sequence[Any]) -> None:
        with staged(parts, up=False) as sent, staged(out, down=False) as received:
            self._host.all_to_all(sent, received)

    def scatter(self, parts: Any, out: Any, root: int) -> None:
        given = [] if parts is None else [parts]
        with staged(given, up=False) as sent, staged([out], down=False) as (received,):
            rows = _bytes(sent[0]).reshape(len(parts), -1) if sent else None
            self._host.scatter(rows, _bytes(received), root)

    def failure(self) -> str | None:
        """None: whoever waits is told by the host's transport."""
        return None

    def abort(self) -> None:
        """Nothing is under way on the device when a method has returned."""


@contextmanager
def staged(arrays: Sequence[Any], down: bool = True, up: bool = True) -> Iterator[list[np.ndarray]]:
    """Arrays of the host in place of those of a device, whose values they have and give back.

    Arrays that are on the host already stay what they are.

    Args:
        down: copy the values to the host first.
        up: copy the values back at the end, unless the block raises.
    """
    stream = cupy.cuda.get_current_stream()
    # Together in one piece of page-locked memory, each at an address that suits any dtype.
    lengths = [0 if isinstance(a, np.ndarray) else -(-a.nbytes // 64) * 64 for a in arrays]
    memory = _pinned.take(sum(lengths))
    hosts = []
    start = 0
    for array, length in zip(arrays, lengths, strict=True):
        if isinstance(array, np.ndarray):
            hosts.append(array)
            continue
        host = _as_array(memory, start, array)
        hosts.append(host)
        start += length
        if down and array.size:
            array.data.copy_to_host_async(_address(host), array.nbytes, stream)
    if down:
        stream.synchronize()
    try:
        yield hosts
        if up:
            for array, host in zip(arrays, hosts, strict=True):
                if array is not host and array.size:
                    array.data.copy_from_host_async(_address(host), array.nbytes, stream)
    finally:
        _pinned.give(memory, stream)


def _in_pieces(
    array: Any, exchange: Callable[[np.ndarray], None], down: bool = True, up: bool = True
) -> None:
    """Exchange an array piece by piece: `exchange` is called with each on the host."""
    stream = cupy.cuda.get_current_stream()
    flat = array.reshape(-1)
    step = max(1, _PIECE_BYTES // flat.itemsize)
    coming = deque(flat[i : i + step] for i in range(0, flat.size, step))
    under_way: deque[tuple[Any, Any, np.ndarray, Any]] = deque()
    while coming or under_way:
        while coming and len(under_way) < _AHEAD:
            piece = coming.popleft()
            memory = _pinned.take(piece.nbytes)
            host = _as_array(memory, 0, piece)
            if down:
                piece.data.copy_to_host_async(_address(host), piece.nbytes, stream)
            under_way.append((piece, memory, host, stream.record() if down else None))
        piece, memory, host, copied = under_way.popleft()
        if copied is not None:
            copied.synchronize()
        exchange(host)
        if up:
            piece.data.copy_from_host_async(_address(host), piece.nbytes, stream)
        _pinned.give(memory, stream)


class _Pinned:
    """Page-locked memory, kept until the copies from and to it are over.

    CuPy's pool of it hands memory on while a copy may still be under way.
    """

    def __init__(self) -> None:
        self._given: deque[tuple[Any, Any]] = deque()
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> Any:
        """Memory of at least `nbytes` that nothing uses."""
        with self._lock:
            while self._given and self._given[0][1].done:
                self._given.popleft()
        return cupy.cuda.alloc_pinned_memory(max(1, nbytes))

    def give(self, memory: Any, stream: Any) -> None:
        """Let go of memory after what is queued on `stream` so far."""
        with self._lock:
            self._given.append((memory, stream.record()))


_pinned = _Pinned()


def _as_array(memory: Any, start: int, like: Any) -> np.ndarray:
    """A NumPy array over page-locked memory, of the shape and dtype of `like`."""
    values = np.frombuffer(memory, np.uint8, like.nbytes, start)
    return values.view(like.dtype).reshape(like.shape)


def _address(array: np.ndarray) -> int:
    return array.ctypes.data


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)
