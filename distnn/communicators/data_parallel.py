"""Data-parallel training without touching the loop: every backward sums the solver's gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..context import current_world
from ..storage import Storage
from .buckets import AllReduceCallback
from .communicator import MultiProcessDataParallelCommunicator

if TYPE_CHECKING:
    from ..plan import Plan
    from ..solvers import Solver


def data_parallel(
    solver: Solver, pack_size: int = 1 << 20, timeout: float | None = None
) -> MultiProcessDataParallelCommunicator:
    """Connect the ranks and average the solver's gradients over them in every `backward`.

    Parameters that exist already become those of rank 0. The training loop stays as it is on one
    process. Each rank trains on its part of the data: `comm.rank` of `comm.size`. A backward that
    is given `communicator_callbacks` itself is left alone; inside of `comm.no_sync()` gradients
    add up and are not exchanged.

    With several solvers (a GAN) call it once for each; they share the communicator. On GPUs
    gradients travel over NCCL; `get_extension_context("cudnn")` gives each rank its GPU.

    Args:
        solver: its parameters, at each backward, are those whose gradients are averaged.
        pack_size: elements of a bucket; buckets are summed while backward still runs.
        timeout: seconds after which a rank that waits raises; default `DISTNN_TIMEOUT` or 300.
    Returns: the communicator.

    >>> import numpy as np
    >>> import distnn as nn, distnn.functions as F, distnn.parametric_functions as PF
    >>> import distnn.solvers as S
    >>> x = nn.Variable.from_numpy_array(np.ones((4, 3)))
    >>> loss = F.mean(PF.affine(x, 2, name="data_parallel_example") ** 2)
    >>> solver = S.Sgd(0.1)
    >>> solver.set_parameters(nn.get_parameters())
    >>> comm = nn.data_parallel(solver)
    >>> for step in range(2):
    ...     loss.forward()
    ...     solver.zero_grad()
    ...     loss.backward()
    ...     solver.update()
    >>> comm.size
    1
    """
    world = current_world()
    comm = world.communicator
    if comm is None:
        comm = MultiProcessDataParallelCommunicator(timeout=timeout)
        comm.init()
    if comm.size > 1:
        comm.connect_devices()
        comm.bcast_parameters()
        world.backward_callbacks.append(_Follower(comm, solver, pack_size))
    return comm


class _Follower:
    """A callback over whatever parameters the solver has when a backward begins."""

    def __init__(
        self, comm: MultiProcessDataParallelCommunicator, solver: Solver, pack_size: int
    ) -> None:
        self._comm = comm
        self._solver = solver
        self._pack_size = pack_size
        self._storages: list[Storage] = []
        self._callback: AllReduceCallback | None = None

    def begin(self, coming: Sequence[Storage], plan: Plan) -> None:
        grads = [p.grad for p in self._solver.get_parameters().values()]
        storages = [grad._storage for grad in grads]
        if self._callback is None or storages != self._storages:
            self._storages = storages
            self._callback = self._comm.all_reduce_callback(grads, self._pack_size, division=True)
        self._callback.begin(coming, plan)

    def ready(self, storage: Storage) -> None:
        assert self._callback is not None
        self._callback.ready(storage)

    def finish(self) -> None:
        assert self._callback is not None
        self._callback.finish()
