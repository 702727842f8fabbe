"""Scattering data: one rank has it, each rank gets its part.

Parts travel in messages of a few megabytes, the next being filled while one is under way: no rank
but the source ever holds more than its part, and neither sizes of messages nor the deadline of a
wait depend on how large the data are.
"""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dtypes import is_float, of_text, text_of
from ..errors import ArgumentError, CommunicatorError
from .header import Agreement, Schedule
from .transport import Transport

if TYPE_CHECKING:
    from .communicator import MultiProcessDataParallelCommunicator

# Of a message, for all ranks together.
_MESSAGE_BYTES = 8 * 1024 * 1024


def scatter_data(
    comm: MultiProcessDataParallelCommunicator,
    data: Any,
    src: int,
    shuffle: bool,
    seed: int,
    force_equal_length: bool,
    group: str,
) -> Any:
    """This rank's part of the data of rank `src`; see the communicator's method."""
    root, size = comm._root("scatter_data", "src", src, group)
    here = comm.find_group(group).index(comm.rank)
    options = f"shuffle={shuffle}, seed={seed}, force_equal_length={force_equal_length}"
    facts: dict[str, Any] = {}
    read: list[Callable[[int, int, int], np.ndarray]] = []
    try:
        if here == root:
            facts, read = _described(data, size, shuffle, seed, force_equal_length)
        elif data is not None:
            raise ArgumentError(f"[scatter_data] data are given here, but src is {src}; pass None")
    except Exception as error:  # of whatever kind: a sample that cannot be pickled, no memory
        facts = {"error": f"{type(error).__name__}: {error}"}
    mine = json.dumps(facts).encode()
    schedule = Schedule(f"scatter_data from rank {src}", [options])
    texts = comm._run(schedule, lambda transport, _: transport.all_gather_bytes(mine), group)
    everybodys = [json.loads(text) for text in texts]
    for rank, found in zip(comm.find_group(group), everybodys, strict=True):
        if "error" in found:
            raise CommunicatorError(f"[scatter_data] rank {rank} cannot: {found['error']}")
    facts = everybodys[root]
    parts = []
    for number, (dtype, shape, lengths) in enumerate(facts["arrays"]):
        part = np.empty((lengths[here], *shape), of_text(dtype))
        row = int(np.prod(shape)) * part.dtype.itemsize
        source = read[number] if here == root else None
        target = part.reshape(-1).view(np.uint8).reshape(lengths[here], row) if part.size else None
        _scatter(comm, group, root, here, lengths, row, source, target, number)
        parts.append(part)
    if facts["kind"] == "list":
        return pickle.loads(parts[0].tobytes())
    return parts[0] if facts["kind"] == "array" else tuple(parts)


def _scatter(
    comm: MultiProcessDataParallelCommunicator,
    group: str,
    root: int,
    here: int,
    lengths: Sequence[int],
    row: int,
    source: Callable[[int, int, int], np.ndarray] | None,
    target: np.ndarray | None,
    number: int,
) -> None:
    """Send rows of `row` bytes to all ranks, `lengths` of them."""
    size, longest = len(lengths), max(lengths)
    if not row:
        return
    rows = max(1, min(longest, _MESSAGE_BYTES // (row * size)))
    last = None
    for first in range(0, longest, rows):
        out = np.empty((rows, row), np.uint8)
        sent = None
        if source is not None:
            sent = np.zeros((size, rows, row), np.uint8)
            for rank, length in enumerate(lengths):
                stop = min(first + rows, length)
                if stop > first:
                    sent[rank, : stop - first] = source(rank, first, stop)

        def job(
            transport: Transport,
            _: Agreement,
            sent: Any = sent,
            out: np.ndarray = out,
            at: int = first,
        ) -> None:
            transport.scatter(sent, out, root)
            stop = min(at + rows, lengths[here])
            if target is not None and stop > at:
                target[at:stop] = out[: stop - at]

        schedule = Schedule(f"scatter_data, array {number} from row {first}", [])
        ticket = comm._start(schedule, job, group)
        if last is not None:
            comm._wait(last)
        last = ticket
    if last is not None:
        comm._wait(last)


def _described(
    data: Any, size: int, shuffle: bool, seed: int, force_equal_length: bool
) -> tuple[dict[str, Any], list[Callable[[int, int, int], np.ndarray]]]:
    """What the other ranks must know of the data, and how rows of a rank's part are read."""
    if isinstance(data, list):
        parts = [
            np.frombuffer(pickle.dumps([data[i] for i in indices]), np.uint8)
            for indices in shares(len(data), size, shuffle, seed, force_equal_length)
        ]
        facts = {"kind": "list", "arrays": [("|u1", (), [len(part) for part in parts])]}
        return facts, [lambda rank, i, j: parts[rank][i:j].reshape(j - i, 1)]
    arrays = data if isinstance(data, tuple) else (data,)
    for i, array in enumerate(arrays):
        numbers = isinstance(array, np.ndarray) and array.ndim and _is_number(array.dtype)
        if not numbers:
            what = type(array).__name__
            if isinstance(array, np.ndarray):
                what = f"an array of shape {array.shape} and dtype {array.dtype}"
            raise ArgumentError(
                f"[scatter_data] data[{i}] is {what}; pass a tuple of NumPy arrays of numbers, "
                "one row a sample, or a list of samples"
            )
    if not arrays or len({len(array) for array in arrays}) > 1:
        raise ArgumentError(
            f"[scatter_data] data have {[len(array) for array in arrays]} rows; pass arrays with "
            "as many rows each, one a sample"
        )
    indices = shares(len(arrays[0]), size, shuffle, seed, force_equal_length)
    lengths = [len(part) for part in indices]

    def reader(array: np.ndarray) -> Callable[[int, int, int], np.ndarray]:
        def read(rank: int, i: int, j: int) -> np.ndarray:
            rows = np.ascontiguousarray(array[indices[rank][i:j]])
            return rows.reshape(-1).view(np.uint8).reshape(j - i, -1)

        return read

    facts = {
        "kind": "tuple" if isinstance(data, tuple) else "array",
        "arrays": [(text_of(array.dtype), array.shape[1:], lengths) for array in arrays],
    }
    return facts, [reader(array) for array in arrays]


def _is_number(dtype: np.dtype) -> bool:
    return dtype.kind in "biuc" or is_float(dtype)


def shares(
    length: int, size: int, shuffle: bool, seed: int, force_equal_length: bool
) -> list[np.ndarray]:
    """The numbers of the samples of each rank.

    With `force_equal_length` all get ceil(length / size): where that does not come out even,
    neighbours share a sample.
    """
    order = np.random.RandomState(seed).permutation(length) if shuffle else np.arange(length)
    starts = [length * rank // size for rank in range(size + 1)]
    if force_equal_length:
        return [order[start : start - (-length // size)] for start in starts[:-1]]
    return [order[start:stop] for start, stop in itertools.pairwise(starts)]
