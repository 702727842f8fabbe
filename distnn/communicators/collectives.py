"""Collectives on lists of arrays: what each exchanges, and what must agree on all ranks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..dtypes import dtype_of_sums
from ..errors import ArgumentError, ShapeError
from ..ndarray import NdArray
from ..transfer import array_module, copy
from .exchange import (
    Arrays,
    Reducer,
    present_anywhere,
    reduce_arrays,
    reduce_ranges,
    sum_exactly,
)
from .header import Agreement, Schedule
from .transport import Transport

if TYPE_CHECKING:
    from .communicator import MultiProcessDataParallelCommunicator

    Communicator = MultiProcessDataParallelCommunicator


def all_reduce(
    comm: Communicator,
    data: NdArray | Sequence[NdArray],
    division: bool,
    group: str,
    compression: Reducer | None,
    algorithm: Reducer | None,
    reproducible: bool,
) -> None:
    """See MultiProcessDataParallelCommunicator.all_reduce, as for the others."""
    arrays = comm._arrays("all_reduce", data, division)
    reducer = None
    if compression is not None or algorithm is not None:
        reducer = comm._reducer("all_reduce", compression, algorithm, group)
    if reproducible and reducer is not None:
        raise ArgumentError(
            f"[all_reduce] reproducible=True and {reducer.describe()} exclude each other; "
            "pass one of them"
        )
    name = "all_reduce, reproducible" if reproducible else "all_reduce"
    schedule = arrays.schedule(name, *([reducer.describe()] if reducer else []))
    present = arrays.present()

    def job(transport: Transport, agreed: Agreement) -> None:
        anywhere = present_anywhere(transport, agreed.incomplete, present)
        if reproducible:
            sum_exactly(arrays, anywhere, transport, division)
        else:
            scale = 1 / transport.size if division else 1
            reduce_arrays(arrays, anywhere, transport, scale, reducer)

    plain = reducer is None and not reproducible and arrays.description.on_host
    nbytes = arrays.description.nbytes if plain else sys.maxsize
    comm._run(schedule, job, group, not all(present), nbytes)


def reduce(
    comm: Communicator, data: NdArray | Sequence[NdArray], dst: int, division: bool, group: str
) -> None:
    arrays = comm._arrays("reduce", data, division)
    root, size = comm._root("reduce", "dst", dst, group)
    scale = 1 / size if division else 1

    def job(transport: Transport, _: Agreement) -> None:
        for array in arrays.memory():
            work = array if transport.rank == root else array.copy()
            reduce_ranges([work.reshape(-1)], transport, scale, root)
        if transport.rank == root:
            arrays.mark_written()

    comm._run(_schedule(f"reduce to rank {dst}", arrays), job, group)


def bcast(comm: Communicator, data: NdArray | Sequence[NdArray], src: int, group: str) -> None:
    arrays = comm._arrays("bcast", data, False)
    root, _ = comm._root("bcast", "src", src, group)

    def job(transport: Transport, _: Agreement) -> None:
        for array in arrays.memory():
            transport.broadcast(array, root)
        arrays.mark_written()

    comm._run(_schedule(f"bcast from rank {src}", arrays), job, group)


def all_gather(
    comm: Communicator, ndarray: NdArray, ndarray_list: Sequence[NdArray], group: str
) -> None:
    source = comm._arrays("all_gather", ndarray, False)
    targets = comm._arrays("all_gather", ndarray_list, False)
    size = len(comm._group("all_gather", group).ranks)
    _check_list("all_gather", source, targets, size)

    def job(transport: Transport, _: Agreement) -> None:
        (array,) = source.memory()
        out = array_module(array).empty((size, *array.shape), array.dtype)
        transport.all_gather(array, out)
        for target, part in zip(targets.memory(), out, strict=True):
            copy(target, part)
        targets.mark_written()

    comm._run(_schedule("all_gather", source, targets), job, group)


def reduce_scatter(
    comm: Communicator,
    ndarray_list: Sequence[NdArray],
    ndarray: NdArray,
    division: bool,
    group: str,
) -> None:
    sources = comm._arrays("reduce_scatter", ndarray_list, division)
    target = comm._arrays("reduce_scatter", ndarray, division)
    size = len(comm._group("reduce_scatter", group).ranks)
    _check_list("reduce_scatter", target, sources, size)

    def job(transport: Transport, _: Agreement) -> None:
        memory = sources.memory()
        module = array_module(memory[0])
        parts = module.stack(memory).astype(dtype_of_sums(memory[0].dtype), copy=False)
        (out,) = target.memory()
        total = module.empty(out.shape, parts.dtype)
        transport.reduce_scatter(parts, total)
        if division:
            total *= 1 / size
        copy(out, total)
        target.mark_written()

    comm._run(_schedule("reduce_scatter", sources, target), job, group)


def _check_list(operation: str, one: Arrays, several: Arrays, size: int) -> None:
    if len(several.items) != size:
        raise ShapeError(
            f"[{operation}] ndarray_list has {len(several.items)} arrays but the group has "
            f"{size} ranks; pass one for each rank"
        )
    for i, item in enumerate(several.items):
        if item.shape != one.items[0].shape:
            raise ShapeError(
                f"[{operation}] array {i} of ndarray_list has shape {item.shape} but ndarray "
                f"{one.items[0].shape}"
            )


def _schedule(operation: str, arrays: Arrays, others: Arrays | None = None) -> Schedule:
    """A schedule of arrays that are not joined; `others` get what comes of them."""
    together = arrays.description
    if others is not None and not (together.on_host and others.description.on_host):
        together = Arrays([*arrays.items, *others.items]).description
    return Schedule(
        operation,
        arrays.entries,
        place=together.place,
        problem=together.problem,
        only_compared=True,
    )
