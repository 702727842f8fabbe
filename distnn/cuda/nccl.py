"""NCCL: collectives of the GPUs of several ranks, queued on the current stream.

One rank has one GPU. Ranks that exchange whole memory, not sums, exchange bytes: NCCL knows fewer
dtypes than NumPy.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cupy
import numpy as np

from ..errors import DtypeError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # where NCCL is missing distnn says so where it is wanted
    from cupy.cuda import nccl

NcclError = nccl.NcclError if nccl.available else RuntimeError

# By the name of the dtype: ml_dtypes' bfloat16 has no character of its own.
_TYPES = {
    "float16": "NCCL_FLOAT16",
    "bfloat16": "NCCL_BFLOAT16",
    "float32": "NCCL_FLOAT32",
    "float64": "NCCL_FLOAT64",
    "bool": "NCCL_UINT8",
    "int8": "NCCL_INT8",
    "uint8": "NCCL_UINT8",
    "int32": "NCCL_INT32",
    "uint32": "NCCL_UINT32",
    "int64": "NCCL_INT64",
    "uint64": "NCCL_UINT64",
}
_OPERATIONS = {"sum": "NCCL_SUM", "max": "NCCL_MAX"}


def version() -> int:
    """NCCL's version as it counts (22809 is 2.28.9); 0 where it cannot be loaded."""
    return nccl.get_version() if nccl.available else 0


def unique_id() -> bytes:
    """What all ranks of a new `NcclRanks` must be given, made by one of them."""
    return nccl.get_unique_id()


class NcclRanks:
    """Ranks whose GPUs NCCL connects; all make it together, each with its device current.

    The methods are those of `communicators.transport.Transport`, for arrays of the device. They
    return when the work is queued on the current stream.

    Raises: NcclError.
    """

    def __init__(self, identifier: bytes, rank: int, size: int) -> None:
        self._rank = rank
        self._size = size
        self._comm = nccl.NcclCommunicator(size, identifier, rank)

    def all_reduce(self, array: Any, operation: str) -> None:
        if array.size:
            kind, place = _kind(array), _place(array)
            how = getattr(nccl, _OPERATIONS[operation])
            self._comm.allReduce(place, place, array.size, kind, how, _stream())

    def reduce(self, array: Any, root: int) -> None:
        if array.size:
            kind, place = _kind(array), _place(array)
            self._comm.reduce(place, place, array.size, kind, nccl.NCCL_SUM, root, _stream())

    def broadcast(self, array: Any, root: int) -> None:
        if array.size:
            place = _place(array)
            self._comm.broadcast(place, place, array.nbytes, nccl.NCCL_UINT8, root, _stream())

    def all_gather(self, array: Any, out: Any) -> None:
        if array.size:
            self._comm.allGather(
                _place(array), _place(out), array.nbytes, nccl.NCCL_UINT8, _stream()
            )

    def reduce_scatter(self, parts: Any, out: Any) -> None:
        if out.size:
            self._comm.reduceScatter(
                _place(parts), _place(out), out.size, _kind(out), nccl.NCCL_SUM, _stream()
            )

    def all_to_all(self, parts: Sequence[Any], out: Sequence[Any]) -> None:
        with _group():
            for rank in range(self._size):
                if rank != self._rank:
                    self._send(parts[rank], rank)
                    self._receive(out[rank], rank)
        out[self._rank][...] = parts[self._rank]

    def scatter(self, parts: Any, out: Any, root: int) -> None:
        with _group():
            if self._rank != root:
                self._receive(out, root)
            else:
                for rank in range(self._size):
                    if rank != root:
                        self._send(parts[rank], rank)
        if self._rank == root:
            out[...] = parts[root]

    def failure(self) -> str | None:
        """What has failed on the way since it was queued; None while all goes well."""
        try:
            self._comm.check_async_error()
        except NcclError as error:
            return str(error)
        return None

    def abort(self) -> None:
        """End what is under way, without the other ranks; it is of no use any more."""
        self._comm.abort()

    def _send(self, array: Any, rank: int) -> None:
        if array.size:
            self._comm.send(_place(array), array.nbytes, nccl.NCCL_UINT8, rank, _stream())

    def _receive(self, array: Any, rank: int) -> None:
        if array.size:
            self._comm.recv(_place(array), array.nbytes, nccl.NCCL_UINT8, rank, _stream())


@contextmanager
def _group() -> Iterator[None]:
    """Sends and receives that wait for each other."""
    nccl.groupStart()
    try:
        yield
    finally:
        nccl.groupEnd()


def _kind(array: Any) -> int:
    """NCCL's number of the dtype."""
    name = np.dtype(array.dtype).name
    if name not in _TYPES:
        raise DtypeError(
            f"[NCCL] cannot add up arrays of dtype {name}; cast them to one of "
            f"{', '.join(_TYPES)} first"
        )
    return getattr(nccl, _TYPES[name])


def _place(array: Any) -> int:
    assert array.flags.c_contiguous, "NCCL sees an address and a length only"
    return array.data.ptr


def _stream() -> int:
    return cupy.cuda.get_current_stream().ptr
