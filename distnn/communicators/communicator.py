"""Communicator: NNabla's data-parallel interface over any transport.

Every collective goes through one queue per process in program order, opened by a header that makes
sure that all ranks mean the same. Waiting has a deadline.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..context import Context, current_world
from ..errors import ArgumentError, CommunicatorError, DtypeError, ShapeError
from ..ndarray import NdArray
from .buckets import AllReduceCallback
from .exchange import Arrays, present_anywhere, reduce_arrays
from .fifo import Fifo, Ticket
from .header import Schedule, exchange
from .scalars import all_reduce_scalars
from .scatter import scatter_data
from .state import bcast_parameters, check_consistency
from .transport import SingleTransport, Transport

_TIMEOUT_VARIABLE = "DISTNN_TIMEOUT"
_DEFAULT_TIMEOUT = 300.0  # seconds


class _Group:
    """Some ranks that have collectives of their own."""

    def __init__(self, name: str, ranks: list[int], transport: Transport | None) -> None:
        self.name = name
        self.ranks = ranks
        self.transport = transport
        self.sequence = 0


class MultiProcessDataParallelCommunicator:
    """Ranks that train one network on different data.

    Started by mpirun or `distnn-launch` each process is a rank; inside `run_threads` each thread is
    one; otherwise there is one rank.

    Args:
        context: kept for NNabla's scripts; arrays say where they are.
        timeout: seconds after which a wait raises; default `DISTNN_TIMEOUT` or 300.

    >>> import distnn.communicators as C
    >>> comm = C.MultiProcessDataParallelCommunicator()
    >>> comm.init()
    >>> comm.rank, comm.size
    (0, 1)
    """

    def __init__(self, context: Context | None = None, timeout: float | None = None) -> None:
        self.context = context
        if timeout is None:
            timeout = float(os.environ.get(_TIMEOUT_VARIABLE, _DEFAULT_TIMEOUT))
        if not timeout > 0:
            raise ArgumentError(
                f"[MultiProcessDataParallelCommunicator] timeout is {timeout}; pass seconds > 0"
            )
        self.timeout = timeout
        self._groups: dict[str, _Group] = {}
        self._fifo: Fifo | None = None
        self._parameters: list[tuple[Any, dict[str, Any]]] = []
        self._consistency_calls = 0

    def init(self) -> None:
        """Connect the ranks; before anything else, on all of them."""
        if self._groups:
            raise CommunicatorError("[init] the communicator is connected already; call it once")
        world = current_world()
        transport = _connect()
        self._groups["world"] = _Group("world", list(range(transport.size)), transport)
        self._fifo = Fifo(f"distnn communication {transport.rank}")
        world.communicator = self

    def close(self) -> None:
        """Let the communication thread end."""
        if self._fifo is not None:
            self._fifo.close()

    # -- who is there -----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def rank(self) -> int:
        """Number of this rank, 0 to size - 1."""
        return self._transport("rank").rank

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self._transport("size").size

    @property
    def local_rank(self) -> int:
        """Number of this rank among those of its machine."""
        return self._transport("local_rank").local_rank

    def new_group(self, name_ranks_pair: tuple[str, Sequence[int]]) -> str:
        """Make a group of ranks that can be named in collectives; all ranks call it.

        Args:
            name_ranks_pair: (name, ranks).
        Returns: the name.
        """
        name, ranks = name_ranks_pair
        numbers = [int(r) for r in ranks]
        if name in self._groups:
            raise ArgumentError(f"[new_group] {name!r} exists, with ranks {self.find_group(name)}")
        if not numbers or len(set(numbers)) != len(numbers):
            raise ArgumentError(
                f"[new_group] ranks {numbers} of {name!r} must be one or more, once"
            )
        if min(numbers) < 0 or max(numbers) >= self.size:
            raise ArgumentError(
                f"[new_group] ranks {numbers} of {name!r}: this job has ranks 0 to {self.size - 1}"
            )
        transport = self._run(
            Schedule("new_group", [f"{name} {numbers}"]),
            lambda transport, _: transport.subset(numbers),
        )
        self._groups[name] = _Group(name, numbers, transport)
        return name

    def list_groups(self) -> list[str]:
        """Names of all groups."""
        return list(self._groups)

    def find_group(self, group: str) -> list[int]:
        """Ranks of a group; empty if there is none of that name."""
        return list(self._groups[group].ranks) if group in self._groups else []

    # -- collectives ------------------------------------------------------------------------------

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self._run(Schedule("barrier", []), lambda transport, _: transport.barrier())

    def abort(self, status: int = 1) -> None:
        """End all ranks at once, with this exit status."""
        self._transport("abort").abort(status)

    def all_reduce(
        self,
        data: NdArray | Sequence[NdArray],
        division: bool = False,
        inplace: bool = False,
        group: str = "world",
    ) -> None:
        """Sum arrays over ranks, in place, on all ranks.

        Arrays that are flagged as zero on all ranks (gradients of layers not used in this step) are
        left out and stay flagged; on ranks where only some are, those count as zeros.

        Args:
            data: one array or a list, the same on all ranks.
            division: divide by the number of ranks.
            inplace: kept for NNabla's scripts; neighbouring arrays are always reduced where they
                are, and small ones packed.
            group: name of a group of ranks.
        Raises: CommunicatorError, on all ranks, where the lists differ between ranks.
        """
        arrays = self._arrays("all_reduce", data, division)
        schedule = Schedule("all_reduce", arrays.entries)
        size = len(self._group("all_reduce", group).ranks)

        present = arrays.present()

        def job(transport: Transport, incomplete: bool) -> None:
            anywhere = present_anywhere(transport, incomplete, present)
            reduce_arrays(arrays, anywhere, transport, 1 / size if division else 1)

        self._run(schedule, job, group, not all(present))

    def all_reduce_callback(
        self,
        data: Sequence[NdArray],
        pack_size: int = 1 << 20,
        division: bool = False,
        group: str = "world",
        scale_grad: float = 1,
        keep_dtype: bool = False,
    ) -> AllReduceCallback:
        """A callback for `backward(communicator_callbacks=...)` that sums gradients meanwhile.

        Gradients are reduced bucket by bucket as they become complete. Make it once and use it in
        every iteration.

        Args:
            data: gradients, the same list on all ranks.
            pack_size: elements per bucket.
            division: divide by the number of ranks.
            group: name of a group of ranks.
            scale_grad: multiply the sums by this.
            keep_dtype: kept for NNabla's scripts; the dtype is always kept.
        """
        if pack_size < 1:
            raise ArgumentError(
                f"[all_reduce_callback] pack_size is {pack_size}; pass the elements of a bucket"
            )
        arrays = self._arrays("all_reduce_callback", data, division)
        size = len(self._group("all_reduce_callback", group).ranks)
        scale = scale_grad / size if division else scale_grad
        return AllReduceCallback(arrays, pack_size, scale, self._starter(group), self._wait)

    def reduce(
        self,
        data: NdArray | Sequence[NdArray],
        dst: int,
        division: bool = False,
        inplace: bool = False,
        group: str = "world",
    ) -> None:
        """Sum arrays over ranks, in place, on rank `dst` of the group; others keep theirs."""
        arrays = self._arrays("reduce", data, division)
        root, size = self._root("reduce", "dst", dst, group)

        def job(transport: Transport, _: bool) -> None:
            for array in arrays.memory():
                work = array if transport.rank == root else array.copy()
                transport.reduce(work, root)
                if transport.rank == root and division:
                    np.multiply(array, 1 / size, out=array)
            if transport.rank == root:
                arrays.mark_written()

        self._run(Schedule(f"reduce to rank {dst}", arrays.entries), job, group)

    def bcast(
        self,
        data: NdArray | Sequence[NdArray],
        src: int,
        inplace: bool = False,
        group: str = "world",
    ) -> None:
        """Copy the arrays of rank `src` to all ranks of the group."""
        arrays = self._arrays("bcast", data, False)
        root, _ = self._root("bcast", "src", src, group)

        def job(transport: Transport, _: bool) -> None:
            for array in arrays.memory():
                transport.broadcast(array, root)
            arrays.mark_written()

        self._run(Schedule(f"bcast from rank {src}", arrays.entries), job, group)

    def all_gather(
        self, ndarray: NdArray, ndarray_list: Sequence[NdArray], group: str = "world"
    ) -> None:
        """Put the array of each rank into `ndarray_list`, by rank, on all ranks."""
        source = self._arrays("all_gather", ndarray, False)
        targets = self._arrays("all_gather", ndarray_list, False)
        size = len(self._group("all_gather", group).ranks)
        self._check_list("all_gather", source, targets, size)

        def job(transport: Transport, _: bool) -> None:
            (array,) = source.memory()
            out = np.empty((size, *array.shape), array.dtype)
            transport.all_gather(array, out)
            for target, part in zip(targets.memory(), out, strict=True):
                np.copyto(target, part, "same_kind")
            targets.mark_written()

        self._run(Schedule("all_gather", source.entries), job, group)

    def reduce_scatter(
        self,
        ndarray_list: Sequence[NdArray],
        ndarray: NdArray,
        division: bool = False,
        group: str = "world",
    ) -> None:
        """Sum the lists of all ranks array by array; rank r gets the r-th sum in `ndarray`."""
        sources = self._arrays("reduce_scatter", ndarray_list, division)
        target = self._arrays("reduce_scatter", ndarray, division)
        size = len(self._group("reduce_scatter", group).ranks)
        self._check_list("reduce_scatter", target, sources, size)

        def job(transport: Transport, _: bool) -> None:
            parts = np.stack(sources.memory())
            (out,) = target.memory()
            total = np.empty(out.shape, parts.dtype)
            transport.reduce_scatter(parts, total)
            if division:
                total *= 1 / size
            np.copyto(out, total, "same_kind")
            target.mark_written()

        self._run(Schedule("reduce_scatter", sources.entries), job, group)

    # -- state ------------------------------------------------------------------------------------

    def bcast_parameters(self, src: int = 0, solver: Any = None, group: str = "world") -> None:
        """Copy all parameters, running statistics included, of rank `src` to all ranks.

        All ranks must have the same parameters: names, shapes, dtypes and need_grad are compared.

        Args:
            solver: a solver, or a list of solvers, whose states and step counts are copied too.
        Raises: CommunicatorError, on all ranks, naming the first parameter that differs.

        >>> import distnn as nn, distnn.communicators as C, distnn.parametric_functions as PF
        >>> comm = C.DataParallelCommunicator()
        >>> comm.init()
        >>> y = PF.affine(nn.Variable((2, 3)), 4)
        >>> comm.bcast_parameters()
        """
        bcast_parameters(self, src, solver, group)

    def check_consistency(self, every: int = 1, solver: Any = None, group: str = "world") -> bool:
        """Compare all parameters of all ranks, bit by bit; each rank sends checksums only.

        Args:
            every: compare in each `every`-th call only: call it in every iteration, on all ranks.
            solver: a solver, or a list of solvers, whose states, step counts, learning rates and
                settings are compared too.
        Returns: whether this call has compared.
        Raises: CommunicatorError, on all ranks, naming the first parameter or state that differs
            and which ranks have which checksum.

        >>> import distnn.communicators as C
        >>> comm = C.DataParallelCommunicator()
        >>> comm.init()
        >>> [comm.check_consistency(every=2) for _ in range(4)]
        [False, True, False, True]
        """
        if not isinstance(every, int) or every < 1:
            raise ArgumentError(f"[check_consistency] every is {every!r}; pass an int of 1 or more")
        self._consistency_calls += 1
        if self._consistency_calls % every:
            return False
        check_consistency(self, solver, group)
        return True

    # -- data and figures -------------------------------------------------------------------------

    def scatter_data(
        self,
        data: Any,
        src: int = 0,
        shuffle: bool = False,
        seed: int = 0,
        force_equal_length: bool = True,
        group: str = "world",
    ) -> Any:
        """Give each rank its part of the data that rank `src` has; no other rank holds them all.

        Args:
            data: on rank `src` an array or a tuple of arrays, one row a sample, or a list of
                samples, which are pickled; None on the others.
            shuffle: distribute the samples in random order, by `seed`.
            force_equal_length: give all ranks as many samples, so that they have as many batches:
                where the number does not divide, some are on two ranks. False: once each.
        Returns: the part, of the same kind as data.
        Raises: CommunicatorError, on all ranks, where the data of `src` cannot be sent.

        >>> import numpy as np, distnn.communicators as C
        >>> def work():
        ...     comm = C.MultiProcessDataParallelCommunicator()
        ...     comm.init()
        ...     return comm.scatter_data(np.arange(5) if comm.rank == 0 else None).tolist()
        >>> C.run_threads(work, 2)
        [[0, 1, 2], [2, 3, 4]]
        """
        return scatter_data(self, data, src, shuffle, seed, force_equal_length, group)

    def all_reduce_scalars(
        self,
        values: Mapping[str, float],
        weights: float | Mapping[str, float] = 1.0,
        group: str = "world",
    ) -> dict[str, float]:
        """Weighted means over ranks of figures such as loss and accuracy, in one message.

        mean = sum of weight value / sum of weight, in float64; the same numbers on all ranks.

        Args:
            values: name -> number; the same names on all ranks.
            weights: of this rank: one number (its samples for example), or one by name. A value of
                weight 0 does not count, even NaN.
        Raises: CommunicatorError, on all ranks, where names differ, or where all weights are 0.

        >>> import distnn.communicators as C
        >>> def work():
        ...     comm = C.MultiProcessDataParallelCommunicator()
        ...     comm.init()
        ...     return comm.all_reduce_scalars({"loss": 1.0 + comm.rank}, weights=3 - comm.rank * 2)
        >>> C.run_threads(work, 2)
        [{'loss': 1.25}, {'loss': 1.25}]
        """
        return all_reduce_scalars(self, values, weights, group)

    # -- NNabla's older interface -----------------------------------------------------------------

    def add_context_and_parameters(self, ctx_param_dict: tuple[Any, dict[str, Any]]) -> None:
        """Register parameters for `allreduce`: (context, name -> Variable)."""
        self._parameters.append(ctx_param_dict)

    def clear_context_parameters(self) -> None:
        """Forget the registered parameters."""
        self._parameters.clear()

    def allreduce(self, division: bool = False, inplace: bool = False) -> None:
        """Sum the gradients of the registered parameters over ranks."""
        grads = [p.grad for _, parameters in self._parameters for p in parameters.values()]
        if not grads:
            raise ArgumentError("[allreduce] no parameters; call add_context_and_parameters first")
        self.all_reduce(grads, division, inplace)

    # -- inside -----------------------------------------------------------------------------------

    def _transport(self, what: str) -> Transport:
        if not self._groups:
            raise CommunicatorError(
                f"[{what}] the communicator is not connected; call init() first"
            )
        transport = self._groups["world"].transport
        assert transport is not None
        return transport

    def _group(self, operation: str, name: str) -> _Group:
        self._transport(operation)
        group = self._groups.get(name)
        if group is None:
            raise ArgumentError(
                f"[{operation}] group is {name!r}; there are {self.list_groups()} (new_group "
                "makes one)"
            )
        if group.transport is None:
            raise ArgumentError(
                f"[{operation}] rank {self.rank} is not in group {name!r}, which has ranks "
                f"{group.ranks}; call it on those only"
            )
        return group

    def _root(self, operation: str, argument: str, rank: int, group: str) -> tuple[int, int]:
        """Place of a world rank in a group, and the group's size."""
        ranks = self._group(operation, group).ranks
        if rank not in ranks:
            raise ArgumentError(
                f"[{operation}] {argument} is {rank}; group {group!r} has ranks {ranks}"
            )
        return ranks.index(rank), len(ranks)

    def _arrays(self, operation: str, data: Any, division: bool) -> Arrays:
        items = [data] if isinstance(data, NdArray) else list(data)
        for i, item in enumerate(items):
            if not isinstance(item, NdArray):
                raise DtypeError(
                    f"[{operation}] array {i} is {type(item).__name__}; pass NdArrays: x.grad "
                    "or x.data of a Variable"
                )
            if division and item.dtype.kind != "f":
                raise DtypeError(
                    f"[{operation}] array {i} has dtype {item.dtype}, which cannot be divided; "
                    "pass division=False or cast it to float"
                )
        return Arrays(items)

    def _check_list(self, operation: str, one: Arrays, several: Arrays, size: int) -> None:
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

    def _starter(self, group: str) -> Callable[..., Ticket]:
        """A function that queues a collective; it does not keep the communicator alive."""
        reference = weakref.ref(self)

        def start(
            schedule: Schedule | None,
            job: Callable[[Transport, bool], Any],
            incomplete: bool = False,
        ) -> Ticket:
            self = reference()
            if self is None:
                raise CommunicatorError("[all_reduce_callback] its communicator is gone; keep it")
            return self._start(schedule, job, group, incomplete)

        return start

    def _start(
        self,
        schedule: Schedule | None,
        job: Callable[[Transport, bool], Any],
        group: str = "world",
        incomplete: bool = False,
    ) -> Ticket:
        """Queue a collective; without a schedule it belongs to the one queued before."""
        operation = "all_reduce_callback" if schedule is None else schedule.operation
        found = self._group(operation, group)
        transport = found.transport
        assert transport is not None
        assert self._fifo is not None
        if schedule is not None:
            found.sequence += 1
        sequence = found.sequence

        def run() -> Any:
            agreed = False
            if schedule is not None:
                agreed = exchange(transport, sequence, schedule, incomplete)
            return job(transport, agreed)

        return self._fifo.submit(f"{operation} no. {sequence}", run)

    def _wait(self, ticket: Ticket) -> Any:
        try:
            return ticket.wait(self.timeout)
        except TimeoutError:
            late = self._transport("wait").late()
            who = f"; late: rank {', '.join(map(str, late))}" if late else ""
            reason = f"{ticket.description} did not end within {self.timeout:g} seconds{who}"
            assert self._fifo is not None
            self._fifo.dead = reason
            raise CommunicatorError(
                f"[{ticket.description}] did not end within {self.timeout:g} seconds{who}; a rank "
                f"left this collective out, is slow or gone (timeout= or {_TIMEOUT_VARIABLE} sets "
                "the limit)"
            ) from None
        except CommunicatorError:
            raise
        except Exception as error:
            assert self._fifo is not None
            self._fifo.dead = f"{ticket.description} failed: {error}"
            raise CommunicatorError(f"[{ticket.description}] failed: {error}") from error

    def _run(
        self,
        schedule: Schedule,
        job: Callable[[Transport, bool], Any],
        group: str = "world",
        incomplete: bool = False,
    ) -> Any:
        return self._wait(self._start(schedule, job, group, incomplete))


class DataParallelCommunicator(MultiProcessDataParallelCommunicator):
    """Ranks in one process; NNabla's deprecated form, which here is a communicator of one rank."""

    def init(self) -> None:
        """Connect to itself."""
        self._groups["world"] = _Group("world", [0], SingleTransport())
        self._fifo = Fifo("distnn communication")
        current_world().communicator = self


def _connect() -> Transport:
    """The transport that this process was started for."""
    world = current_world()
    if world.transport is not None:
        return world.transport
    from . import mpi

    size, _ = mpi.started_ranks()
    mpi_runs = "mpi4py.MPI" in sys.modules
    return mpi.connect() if size > 1 or mpi_runs else SingleTransport()
