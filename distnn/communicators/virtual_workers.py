"""Virtual workers: training whose bits do not depend on the number of ranks.

The global batch is cut into V parts, and each is worked on as if by a worker of its own: same
parameters, same statistics of before the step, own random numbers. Ranks have V / size parts each.
What the parts yield, gradients and new statistics, is averaged by an exact sum (exact_sum.py),
which knows no order: where a part was computed cannot be seen in the result.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..context import World, compute_recorded, current_backend, current_world
from ..dtypes import is_float
from ..errors import ArgumentError, CommunicatorError, DtypeError, GraphError, ShapeError
from ..ndarray import NdArray
from ..parameter import get_parameters
from ..storage import Storage
from ..transfer import backend_of, copy, staged
from ..variable import Variable
from .exact_sum import exact_sum
from .exchange import Arrays, present_anywhere
from .header import Agreement, Schedule
from .transport import Transport

if TYPE_CHECKING:
    from .communicator import MultiProcessDataParallelCommunicator

Parameters = Mapping[str, Variable] | Sequence[Variable] | None
Values = dict[Storage, Any]


def virtual_workers(
    comm: MultiProcessDataParallelCommunicator,
    workers: int,
    batch: Any,
    parameters: Parameters,
    division: bool,
) -> Iterator[Any]:
    """See `MultiProcessDataParallelCommunicator.virtual_workers`; arguments are checked at once."""
    if isinstance(workers, bool) or not isinstance(workers, int | np.integer) or workers < 1:
        raise ArgumentError(
            f"[virtual_workers] workers is {workers!r}; pass an int of 1 or more, the same for "
            "every number of ranks"
        )
    if workers % comm.size:
        raise ArgumentError(
            f"[virtual_workers] workers is {workers} and there are {comm.size} ranks; pass a "
            "multiple of every number of ranks you will train on"
        )
    if comm.differences and current_backend().name.startswith("cpu"):
        raise CommunicatorError(
            "[virtual_workers] ranks round differently, so bits would depend on the rank that "
            f"computes a part: {comm.differences}; start all ranks on machines of one kind"
        )
    arrays = _arrays(batch, int(workers))
    step = _Step(comm, int(workers), arrays, parameters, division)
    return _parts(step, arrays, isinstance(batch, tuple | list))


def _arrays(batch: Any, workers: int) -> list[np.ndarray]:
    """The arrays of the global batch, of equal length, which is a multiple of `workers`."""
    arrays = [np.asarray(a) for a in (batch if isinstance(batch, tuple | list) else [batch])]
    if not arrays or not all(a.ndim for a in arrays):
        raise ShapeError(
            f"[virtual_workers] batch has arrays of shapes {[a.shape for a in arrays]}; pass one "
            "array or several, with the examples along axis 0"
        )
    lengths = [len(a) for a in arrays]
    if len(set(lengths)) > 1:
        raise ShapeError(
            f"[virtual_workers] the arrays of batch have lengths {lengths}; pass arrays of equal "
            "length, one row per example"
        )
    if not lengths[0] or lengths[0] % workers:
        raise ShapeError(
            f"[virtual_workers] batch has {lengths[0]} examples, which {workers} virtual workers "
            "cannot share equally; pass a multiple, for example by drop_last=True of the iterator"
        )
    return arrays


def _parts(step: _Step, arrays: Sequence[np.ndarray], several: bool) -> Iterator[Any]:
    """The generator itself; it is closed at once where the loop's body breaks or raises."""
    step.open()
    try:
        rows = len(arrays[0]) // step.workers
        for worker in step.mine:
            part = tuple(a[worker * rows : (worker + 1) * rows] for a in arrays)
            step.begin(worker)
            yield part if several else part[0]
            step.end()
        step.finish()
    finally:
        step.close()


class _Step:
    """What one pass through the loop gathers."""

    def __init__(
        self,
        comm: MultiProcessDataParallelCommunicator,
        workers: int,
        arrays: Sequence[np.ndarray],
        parameters: Parameters,
        division: bool,
    ) -> None:
        self.comm = comm
        self.workers = workers
        share = workers // comm.size
        self.mine = range(comm.rank * share, (comm.rank + 1) * share)
        self._division = division
        if isinstance(parameters, Mapping):
            parameters = list(parameters.values())
        self._given = None if parameters is None else list(dict.fromkeys(map(_grad, parameters)))
        self._batch = [_described(a) for a in arrays]
        self._world: World = current_world()
        self._gradients: list[Values] = []  # of each part done here, those that it wrote
        self._statistics: list[Values] = []  # the same for what effects changed
        self._before: Values = {}  # what effects changed, as it was before the step
        self._touched: set[Storage] = set()  # by effects of this part
        self._first_draw = self._last_draw = 0
        self._opened = self._finished = False

    def gradients(self) -> list[NdArray]:
        """The gradients as of now: a dynamic graph may add parameters."""
        if self._given is not None:
            return self._given
        found = get_parameters(self._world.parameters)
        return list(dict.fromkeys(p.grad for p in found.values()))

    def open(self) -> None:
        world = self._world
        if world.virtual_worker is not None:
            raise GraphError(
                "[virtual_workers] another loop over virtual workers is still open; end it first "
                "(close() of an iterator that you hold)"
            )
        full = [g for g in self.gradients() if not g.zeroing]
        if full:
            names = ", ".join(Arrays(full).entries[:3])
            raise GraphError(
                f"[virtual_workers] {len(full)} gradients hold values already ({names}), and parts "
                "are not added to them; call solver.zero_grad() before the loop, or pass "
                "parameters=solver.get_parameters() if it trains only some"
            )
        self._first_draw = self._last_draw = world.draws
        world.before_effect = self._note_effect
        self._opened = True

    def begin(self, worker: int) -> None:
        """Make all as it was before the step, for this worker."""
        compute_recorded()
        self._world.virtual_worker = worker
        self._world.draws = self._first_draw
        for gradient in self.gradients():
            gradient.zero()

    def end(self) -> None:
        """Put away what the part has yielded."""
        compute_recorded()
        last = len(self._gradients) == len(self.mine) - 1
        written = [g for g in self.gradients() if not g.zeroing]
        # The last part's stay where they are: nobody writes to them before the sum does.
        self._gradients.append({g._storage: _values(g._storage, not last) for g in written})
        self._refuse_strangers()
        self._statistics.append({storage: _values(storage, True) for storage in self._touched})
        self._restore(self._touched)
        self._touched = set()
        self._last_draw = max(self._last_draw, self._world.draws)

    def finish(self) -> None:
        """Average over all parts of all ranks."""
        gradients = self.gradients()
        buffers = self._buffers()
        items = Arrays([*gradients, *buffers])
        present = [
            *(any(g._storage in part for part in self._gradients) for g in gradients),
            *(b._storage in self._before for b in buffers),
        ]
        for item, here in zip(items.items, present, strict=True):
            if here and not is_float(item.dtype):
                raise DtypeError(
                    f"[virtual_workers] {Arrays([item]).entries[0]} cannot be averaged; cast it to "
                    "float"
                )
        division = [self.workers if self._division else 1] * len(gradients)
        divisors = [*division, *[self.workers] * len(buffers)]
        settings = f"{self.workers} workers, division={self._division}"
        schedule = Schedule("virtual_workers", [settings, *self._batch, *items.entries])

        def job(transport: Transport, agreed: Agreement) -> int:
            anywhere = present_anywhere(transport, agreed.incomplete, present)
            draws = np.array([self._last_draw], np.int64)
            transport.all_reduce(draws, "max")
            chosen = [i for i, written in enumerate(anywhere) if written]
            storages = [items.items[i]._storage for i in chosen]
            summands = [
                self._summands(storage, i < len(gradients))
                for i, storage in zip(chosen, storages, strict=True)
            ]
            outs = [storage.materialize() for storage in storages]
            _exact_sum(summands, outs, self.workers, [divisors[i] for i in chosen], transport)
            for i, storage in zip(chosen, storages, strict=True):
                storage.written()
                storage.effects += i >= len(gradients)
            return int(draws[0])

        self._world.draws = self.comm._run(schedule, job, "world", not all(present))
        self._finished = True

    def close(self) -> None:
        """Be no virtual worker any more; a loop that was left early is undone."""
        if not self._opened:
            return
        compute_recorded()
        world = self._world
        world.virtual_worker = None
        world.before_effect = None
        if not self._finished:
            world.draws = self._first_draw
            self._restore(self._before)
            for gradient in self.gradients():
                gradient.zero()

    # -- inside -----------------------------------------------------------------------------------

    def _buffers(self) -> list[NdArray]:
        """Whatever effects may have changed: trained parameters as well, if somebody assigns."""
        found = get_parameters(self._world.parameters, grad_only=False)
        return list(dict.fromkeys(p.data for p in found.values()))

    def _summands(self, storage: Storage, gradient: bool) -> list[Any]:
        """This rank's values, one per part; zero gradients are left out."""
        if gradient:
            return [part[storage] for part in self._gradients if storage in part]
        before = self._before.get(storage)
        if before is None:  # only other ranks' parts changed it
            before = storage.materialize()
        return [part.get(storage, before) for part in self._statistics]

    def _note_effect(self, storage: Storage) -> None:
        """A function is about to change `storage`."""
        if storage not in self._before:
            self._before[storage] = _values(storage, True)
        self._touched.add(storage)

    def _refuse_strangers(self) -> None:
        """Raise if an effect changed what is no parameter: ranks cannot name it to each other."""
        strangers = self._touched - {buffer._storage for buffer in self._buffers()}
        if strangers:
            raise GraphError(
                f"[virtual_workers] a function changed {len(strangers)} arrays that are no "
                f"parameters ({strangers.pop().shape}: running statistics, or the target of "
                "assign), and each part would see what parts before it left there; make them by "
                "nn.parameter.get_parameter_or_create(..., need_grad=False)"
            )

    def _restore(self, storages: Iterable[Storage]) -> None:
        for storage in storages:
            copy(storage.materialize(), self._before[storage])
            storage.written()
            storage.effects += 1


def _grad(parameter: Any) -> NdArray:
    if not isinstance(parameter, Variable):
        raise DtypeError(
            f"[virtual_workers] parameters has {type(parameter).__name__}; pass Variables, for "
            "example solver.get_parameters()"
        )
    return parameter.grad


def _exact_sum(
    summands: Sequence[Sequence[Any]],
    outs: Sequence[Any],
    count: int,
    divisors: Sequence[int],
    transport: Transport,
) -> None:
    """As exact_sum, which computes on the host, of arrays on whichever device."""
    flat = [summand for parts in summands for summand in parts]
    with staged(flat, up=False) as hosts, staged(outs, down=False) as sums:
        found = iter(hosts)
        exact_sum([[next(found) for _ in parts] for parts in summands], sums, count, divisors,
                  transport)  # fmt: skip


def _values(storage: Storage, apart: bool) -> Any:
    values = storage.materialize()
    if not apart:
        return values
    out = backend_of(values).empty(values.shape, values.dtype)  # from the pool
    copy(out, values)
    return out


def _described(array: np.ndarray) -> str:
    """Shape, dtype and first example: ranks that were given different batches find out."""
    text = f"batch {array.shape} {array.dtype}"
    if array.dtype.kind in "biuf":
        text += f" that begins with CRC {zlib.crc32(np.ascontiguousarray(array[:1]).tobytes()):08x}"
    return text
