"""All-reduce over a grid of ranks: sums inside rows, then across them, on parts of the data.

A ring over n ranks takes 2 (n - 1) messages one after the other; a grid of X x Y ranks takes
2 (X - 1) + 2 (Y - 1). And where a row is a machine only 1 / X of the data leaves it per rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dtypes import dtype_of_sums
from ..errors import ArgumentError
from ..ndarray import NdArray
from ..transfer import array_module
from .exchange import Reducer, ranges
from .header import Schedule
from .transport import Transport

if TYPE_CHECKING:
    from .communicator import MultiProcessDataParallelCommunicator


class TorusAllReduce(Reducer):
    """Sum over ranks in a grid: reduce-scatter in rows, all-reduce in columns, all-gather in rows.

    Rank r has row r // columns and column r % columns. Equals `all_reduce` up to the order of the
    additions. Made once, by all ranks; for the group "world". Pass it as `algorithm` to
    `all_reduce` or `all_reduce_callback`, or use its own `all_reduce`.

    Args:
        comm: a connected communicator.
        shape: (rows, columns), with rows * columns = comm.size.
    Raises: ArgumentError where the shape does not fit.

    Mikami et al., arXiv:1811.05233.

    >>> import numpy as np, distnn as nn, distnn.communicators as C
    >>> def work():
    ...     comm = C.MultiProcessDataParallelCommunicator()
    ...     comm.init()
    ...     torus = C.TorusAllReduce(comm, (2, 2))
    ...     array = nn.NdArray.from_numpy_array(np.array([1., comm.rank]))
    ...     torus.all_reduce(array)
    ...     return array.data
    >>> C.run_threads(work, 4)[3]
    array([4., 6.])
    """

    def __init__(self, comm: MultiProcessDataParallelCommunicator, shape: tuple[int, int]) -> None:
        name = type(self).__name__
        try:
            rows, columns = (int(length) for length in shape)
        except (TypeError, ValueError):
            raise ArgumentError(
                f"[{name}] shape is {shape!r}; pass (rows, columns), for example (2, {comm.size}) "
                f"on {2 * comm.size} ranks"
            ) from None
        if min(rows, columns) < 1 or rows * columns != comm.size:
            fitting = [(n, comm.size // n) for n in range(1, comm.size + 1) if comm.size % n == 0]
            raise ArgumentError(
                f"[{name}] shape is {(rows, columns)}, which makes {rows * columns} ranks, but the "
                f"communicator has {comm.size}; pass one of {fitting}"
            )
        self.shape = (rows, columns)
        self._comm = comm
        grid = np.arange(comm.size).reshape(self.shape)
        row, column = divmod(comm.rank, columns)
        self._row = _subset(comm, f"{name} rows", grid.tolist(), row)
        self._column = _subset(comm, f"{name} columns", grid.T.tolist(), column)

    def check(self, operation: str, ranks: Sequence[int]) -> None:
        if list(ranks) != list(range(self._comm.size)):
            raise ArgumentError(
                f"[{operation}] the group has ranks {list(ranks)} but {self.describe()} sums over "
                f"all {self._comm.size}; leave algorithm or group out"
            )

    def describe(self) -> str:
        return f"{type(self).__name__}{self.shape}"

    def all_reduce(self, data: NdArray | Sequence[NdArray], division: bool = False) -> None:
        """Sum arrays over ranks, in place, on all ranks; see `all_reduce` of the communicator."""
        self._comm.all_reduce(data, division, algorithm=self)

    def reduce(self, items: Sequence[NdArray], transport: Transport, scale: float) -> None:
        by_dtype: dict[np.dtype, list[Any]] = {}
        for part in ranges(items):
            by_dtype.setdefault(dtype_of_sums(part.dtype), []).append(part)
        for dtype, parts in by_dtype.items():
            self._sum(dtype, parts, scale)

    def _sum(self, dtype: np.dtype, parts: Sequence[Any], scale: float) -> None:
        module = array_module(parts[0])
        length = sum(part.size for part in parts)
        columns = self.shape[1]
        packed = module.zeros((columns, -(-length // columns)), dtype)
        flat = packed.reshape(-1)
        module.concatenate(parts, out=flat[:length])
        mine = module.empty_like(packed[0])
        self._row.reduce_scatter(packed, mine)
        self._column.all_reduce(mine, "sum")
        if scale != 1:
            mine *= scale
        self._row.all_gather(mine, packed)
        at = 0
        for part in parts:
            part[...] = flat[at : at + part.size]
            at += part.size


class HierarchicalAllReduce(TorusAllReduce):
    """Sum over ranks inside groups of neighbours, between the groups, and inside again.

    A reduce-scatter inside a group, an all-reduce between the ranks of equal place in all groups,
    an all-gather inside: over the slow links between groups goes 1 / ranks_per_group of the data
    per rank. A TorusAllReduce with a group as row.

    Args:
        comm: a connected communicator.
        ranks_per_group: default: the ranks of a machine, which then must be equally many on all
            machines and numbered one machine after the other.
    Raises: ArgumentError where the groups do not fit.

    >>> import distnn.communicators as C
    >>> def work():
    ...     comm = C.MultiProcessDataParallelCommunicator()
    ...     comm.init()
    ...     return C.HierarchicalAllReduce(comm, ranks_per_group=3).shape
    >>> C.run_threads(work, 6)[0]
    (2, 3)
    """

    def __init__(
        self,
        comm: MultiProcessDataParallelCommunicator,
        ranks_per_group: int | None = None,
    ) -> None:
        per_group = _ranks_per_machine(comm) if ranks_per_group is None else int(ranks_per_group)
        if per_group < 1 or comm.size % per_group:
            raise ArgumentError(
                f"[HierarchicalAllReduce] ranks_per_group is {per_group} but the communicator has "
                f"{comm.size} ranks; pass a divisor of that"
            )
        super().__init__(comm, (comm.size // per_group, per_group))


def _subset(
    comm: MultiProcessDataParallelCommunicator, what: str, groups: list[list[int]], mine: int
) -> Transport:
    """Split all ranks into groups; the transport of group `mine`, where this rank is."""
    found = comm._run(
        Schedule("TorusAllReduce", [f"{what} {groups}"]),
        lambda transport, _: [transport.subset(ranks) for ranks in groups],
    )
    return found[mine]


def _ranks_per_machine(comm: MultiProcessDataParallelCommunicator) -> int:
    place = np.array([comm.local_rank])
    places = np.empty((comm.size, 1), place.dtype)
    comm._run(
        Schedule("HierarchicalAllReduce", []),
        lambda transport, _: transport.all_gather(place, places),
    )
    found = places.reshape(-1).tolist()
    count = max(found) + 1
    if comm.size % count or found != [rank % count for rank in range(comm.size)]:
        raise ArgumentError(
            f"[HierarchicalAllReduce] the ranks have the places {found} on their machines; start "
            "equally many on each, one machine after the other (mpirun --map-by slot), or pass "
            "ranks_per_group"
        )
    return count
