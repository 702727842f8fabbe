"""Communicator: NNabla's data-parallel interface over any transport.

Every collective goes through one queue per process in program order, opened by a header that makes
sure that all ranks mean the same. Waiting has a deadline.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from ..context import Context, current_backend
from ..dtypes import is_float
from ..errors import ArgumentError, CommunicatorError, DtypeError
from ..ndarray import NdArray
from .buckets import AllReduceCallback
from .channel import Channel, connect
from .collectives import all_gather, all_reduce, bcast, reduce, reduce_scatter
from .exchange import Arrays, Description, Reducer
from .header import Agreement, Schedule
from .join import join
from .nccl import DeviceTransport, with_gpus
from .scalars import all_reduce_scalars
from .scatter import scatter_data
from .state import bcast_parameters, check_consistency
from .throttled import with_link_of_environment
from .transport import SingleTransport, Transport
from .virtual_workers import Parameters, virtual_workers
from .waiting import TIMEOUT_VARIABLE

Batch = TypeVar("Batch")

_DEFAULT_TIMEOUT = 300.0  # seconds


class MultiProcessDataParallelCommunicator(Channel):
    """Ranks that train one network on different data.

    Started by mpirun or `distnn-launch` each process is a rank; inside `run_threads` each thread is
    one; otherwise there is one rank.

    Args:
        context: kept for NNabla's scripts; arrays say where they are.
        timeout: seconds after which a wait raises; default `DISTNN_TIMEOUT` or 300.
        check: True: ranks also compare their graphs. False: they leave out headers that only
            compare. None: as `DISTNN_CHECK` (1 or 0) says. The same on all ranks.

    >>> import distnn.communicators as C
    >>> comm = C.MultiProcessDataParallelCommunicator()
    >>> comm.init()
    >>> comm.rank, comm.size
    (0, 1)
    """

    def __init__(
        self,
        context: Context | None = None,
        timeout: float | None = None,
        check: bool | None = None,
    ) -> None:
        self.context = context
        if timeout is None:
            timeout = float(os.environ.get(TIMEOUT_VARIABLE, _DEFAULT_TIMEOUT))
        if not timeout > 0:
            raise ArgumentError(
                f"[MultiProcessDataParallelCommunicator] timeout is {timeout}; pass seconds > 0"
            )
        super().__init__(timeout, check)
        self._parameters: list[tuple[Any, dict[str, Any]]] = []
        # What was exchanged before: to describe it again takes longer than to agree on it.
        self._known: deque[Description] = deque(maxlen=8)
        self._accumulating = False  # inside no_sync
        self._divide_by_active = False  # inside join
        self._consistency_calls = 0

    def init(self) -> None:
        """Connect the ranks; before anything else, on all of them.

        Raises: CommunicatorError, on all ranks, where some compute on the CPU with other kernels.
        """
        if self._groups:
            raise CommunicatorError("[init] the communicator is connected already; call it once")
        self._open(with_gpus(with_link_of_environment(connect())), self.context)

    def connect_devices(self) -> None:
        """Connect the devices of the ranks' contexts now; else the first exchange does it.

        Raises: CommunicatorError, on all ranks, where some compute on a GPU and some on the CPU,
            where two use one GPU that did not ask for it, or where NCCL fails.
        """
        kind = current_backend().name.partition(":")[0]

        def job(transport: Transport, _: Agreement) -> None:
            if kind == "cuda" and isinstance(transport, DeviceTransport):
                transport.connect_gpus()

        self._run(Schedule("connect_devices", [kind], noun="backend"), job)

    # -- collectives ------------------------------------------------------------------------------

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        schedule = Schedule("barrier", [], only_compared=True)
        self._run(schedule, lambda transport, _: transport.barrier())

    def abort(self, status: int = 1) -> None:
        """End all ranks at once, with this exit status."""
        transport = self._transport("abort")
        assert self._fifo is not None
        self._fifo.dead = f"abort({status}) was called"
        transport.abort(status)

    def all_reduce(
        self,
        data: NdArray | Sequence[NdArray],
        division: bool = False,
        inplace: bool = False,
        group: str = "world",
        compression: Reducer | None = None,
        algorithm: Reducer | None = None,
        reproducible: bool = False,
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
            compression: send less: `C.HalfCompression()` or `C.PowerSGD()`; one object for all
                steps.
            algorithm: sum in another way: `C.TorusAllReduce` or `C.HierarchicalAllReduce`.
            reproducible: add floats exactly, so that the bits depend on the values alone, not on
                the order or algorithm of the additions (`virtual_workers` makes training so).
        Raises: CommunicatorError, on all ranks, where the lists differ between ranks.
        """
        all_reduce(self, data, division, group, compression, algorithm, reproducible)

    def virtual_workers(
        self, workers: int, batch: Any, parameters: Parameters = None, division: bool = True
    ) -> Iterator[Any]:
        """Loop over this rank's parts of a step whose bits do not depend on the number of ranks.

        The batch is cut into `workers` equal parts; rank r of n has the r-th n-th of them. The
        loop's body does forward and backward on one part. When the loop ends each gradient is the
        mean over all parts of all ranks, by an exact sum, and so are the new values of whatever
        functions update (running statistics). Every part begins with the state of before the
        step and draws its own random numbers. Gradients that no part wrote stay flagged as zero.

        Leaving the loop early (break, an exception) undoes it: gradients are flagged as zero,
        statistics and random numbers are as before. All ranks must leave it then.

        Args:
            workers: number of virtual workers, a multiple of the number of ranks. It is part of
                what is computed, as the batch size is: keep it when the number of ranks changes.
            batch: the global batch, the same on all ranks: an array, or a tuple or list of arrays
                of equal length, a multiple of `workers`.
            parameters: whose gradients to average: Variables, or a dict of them; None is all
                trainable parameters, also those that the loop's body creates.
            division: False sums gradients instead of averaging them.
        Yields: the part: a tuple of arrays, or an array if `batch` is one.
        Raises: GraphError if gradients hold values before the loop: parts are not added to them.

        >>> import numpy as np, distnn as nn, distnn.functions as F, distnn.solvers as S
        >>> import distnn.parametric_functions as PF, distnn.communicators as C
        >>> comm = C.MultiProcessDataParallelCommunicator()
        >>> comm.init()
        >>> x = nn.Variable((2, 3))
        >>> loss = F.mean(PF.affine(x, 1, name="virtual_workers_example") ** 2)
        >>> solver = S.Sgd(0.1)
        >>> solver.set_parameters(nn.get_parameters())
        >>> solver.zero_grad()
        >>> for x.d in comm.virtual_workers(4, np.ones((8, 3), np.float32)):
        ...     loss.forward(clear_no_need_grad=True)
        ...     loss.backward(clear_buffer=True)
        >>> solver.update()
        """
        return virtual_workers(self, workers, batch, parameters, division)

    def all_reduce_callback(
        self,
        data: Sequence[NdArray],
        pack_size: int = 1 << 20,
        division: bool = False,
        group: str = "world",
        scale_grad: float = 1,
        keep_dtype: bool = False,
        compression: Reducer | None = None,
        algorithm: Reducer | None = None,
        same_graph: bool | None = None,
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
            compression, algorithm: as in `all_reduce`.
            same_graph: True: in each backward also compare the graphs of the ranks function by
                function, whatever the shapes. False: they may differ, as with stochastic depth.
                None: compare where `DISTNN_CHECK` is 1.
        """
        if pack_size < 1:
            raise ArgumentError(
                f"[all_reduce_callback] pack_size is {pack_size}; pass the elements of a bucket"
            )
        arrays = self._arrays("all_reduce_callback", data, division)
        size = len(self._group("all_reduce_callback", group).ranks)

        def scale(active: int) -> float:
            ranks = active if self._divide_by_active else size
            return scale_grad / ranks if division else scale_grad

        return AllReduceCallback(
            arrays,
            pack_size,
            scale,
            self._starter(group),
            self._wait,
            lambda: not self._accumulating,
            self._reducer("all_reduce_callback", compression, algorithm, group),
            self._check is True if same_graph is None else same_graph,
        )

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, backward leaves gradients on their rank although it is given a callback.

        The next backward outside reduces what has been accumulated, once. `all_reduce` and the
        other collectives are not affected.

        >>> import distnn as nn, distnn.communicators as C
        >>> import distnn.functions as F, distnn.parametric_functions as PF
        >>> comm = C.MultiProcessDataParallelCommunicator()
        >>> comm.init()
        >>> x = nn.Variable((1, 2))
        >>> loss = F.sum(PF.affine(x, 1))
        >>> gradients = [p.grad for p in nn.get_parameters().values()]
        >>> callback = comm.all_reduce_callback(gradients)
        >>> x.d = 1
        >>> loss.forward()
        >>> with comm.no_sync():
        ...     loss.backward(communicator_callbacks=callback)
        >>> loss.backward(communicator_callbacks=callback)  # reduces the sum of both
        >>> gradients[0].data.ravel()
        array([2., 2.], dtype=float32)
        """
        before, self._accumulating = self._accumulating, True
        try:
            yield
        finally:
            self._accumulating = before

    def join(
        self,
        batches: Iterable[Batch],
        updates: Mapping[AllReduceCallback, Callable[[], Any]],
        divide_by: str = "active",
    ) -> Iterator[Batch]:
        """The batches of this rank, where ranks may have different numbers of them.

        A rank that has no more adds zeros to the others' sums, and updates its parameters as they
        do, until all are done: parameters and solver states stay equal on all ranks. All ranks
        begin and end the loop together; inside it, the callbacks do all the exchange.

        Args:
            batches: of this rank; gradients that it accumulated in `no_sync` at their end are lost.
            updates: for each callback used in the loop, over all ranks, what follows its backward:
                `{callback: solver.update}`, or a function that also decays weights and so on.
            divide_by: what `division=True` divides by: ranks that still have data ("active"), or
                all ("initial", as if those without data had gradient 0).
        Raises: CommunicatorError, on all ranks, where ranks with data exchange anything else.

        >>> import distnn.communicators as C
        >>> comm = C.MultiProcessDataParallelCommunicator()
        >>> comm.init()
        >>> list(comm.join([10, 20], {}))
        [10, 20]
        """
        return join(self, batches, updates, divide_by)

    def reduce(
        self,
        data: NdArray | Sequence[NdArray],
        dst: int,
        division: bool = False,
        inplace: bool = False,
        group: str = "world",
    ) -> None:
        """Sum arrays over ranks, in place, on rank `dst` of the group; others keep theirs."""
        reduce(self, data, dst, division, group)

    def bcast(
        self,
        data: NdArray | Sequence[NdArray],
        src: int,
        inplace: bool = False,
        group: str = "world",
    ) -> None:
        """Copy the arrays of rank `src` to all ranks of the group."""
        bcast(self, data, src, group)

    def all_gather(
        self, ndarray: NdArray, ndarray_list: Sequence[NdArray], group: str = "world"
    ) -> None:
        """Put the array of each rank into `ndarray_list`, by rank, on all ranks."""
        all_gather(self, ndarray, ndarray_list, group)

    def reduce_scatter(
        self,
        ndarray_list: Sequence[NdArray],
        ndarray: NdArray,
        division: bool = False,
        group: str = "world",
    ) -> None:
        """Sum the lists of all ranks array by array; rank r gets the r-th sum in `ndarray`."""
        reduce_scatter(self, ndarray_list, ndarray, division, group)

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

    def _reducer(
        self, operation: str, compression: Any, algorithm: Any, group: str
    ) -> Reducer | None:
        """The one of the two that was passed."""
        reducer = algorithm if compression is None else compression
        if reducer is None:
            return None
        if compression is not None and algorithm is not None:
            raise ArgumentError(
                f"[{operation}] compression is {compression.describe()} and algorithm "
                f"{algorithm.describe()}; pass one of the two"
            )
        if not isinstance(reducer, Reducer):
            raise ArgumentError(
                f"[{operation}] compression or algorithm is {reducer!r}; pass an object such as "
                "C.HalfCompression() or C.TorusAllReduce(comm, (2, 2))"
            )
        reducer.check(operation, self._group(operation, group).ranks)
        return reducer

    def _arrays(self, operation: str, data: Any, division: bool) -> Arrays:
        items = [data] if isinstance(data, NdArray) else list(data)
        for known in self._known:
            if known.fits(items) and (known.floats or not division):
                return Arrays(items, known)
        for i, item in enumerate(items):
            if not isinstance(item, NdArray):
                raise DtypeError(
                    f"[{operation}] array {i} is {type(item).__name__}; pass NdArrays: x.grad "
                    "or x.data of a Variable"
                )
            if division and not is_float(item.dtype):
                raise DtypeError(
                    f"[{operation}] array {i} has dtype {item.dtype}, which cannot be divided; "
                    "pass division=False or cast it to float"
                )
        arrays = Arrays(items)
        self._known.appendleft(arrays.description)
        return arrays


class DataParallelCommunicator(MultiProcessDataParallelCommunicator):
    """Ranks in one process; NNabla's deprecated form, which here is a communicator of one rank."""

    def init(self) -> None:
        """Connect to itself."""
        self._open(SingleTransport(), self.context)
