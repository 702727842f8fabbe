"""Training in half precision: the loss is scaled so that small gradients do not become 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from ..context import current_world
from ..errors import ArgumentError, SolverError
from ..variable import Variable

if TYPE_CHECKING:
    from ..communicators import MultiProcessDataParallelCommunicator
    from ..ndarray import NdArray

# Attempts in a row with gradients that are not finite, before that is an error.
_MOST_IN_A_ROW = 100


class DynamicLossScalingUpdater:
    """One training step whose loss is multiplied by a scale that follows the gradients.

    float16 has no numbers below 6e-8 and none above 65504. Gradients of scale * loss are scale
    times as large, and are divided by it in float32 before the update. Where one of them is
    infinite or NaN, the scale was too large: it is divided by `scaling_factor`, and parameters,
    solver states and step counts stay as they are. After N updates in a row without that it is
    multiplied by `scaling_factor`.

    Over ranks all take the same decision: with `comm` they agree on it, and without it gradients
    that are sums over all ranks, as those of `nn.data_parallel`, are finite on all of them or on
    none. What functions update (running statistics) has seen the attempts that failed, too.

    Args:
        solver: with the parameters to update.
        loss: the Variable to minimize; or a function that computes and returns it: a dynamic graph.
        data_feeder: a function that sets the inputs; called before each forward.
        scale: the first scale. `self.scale` is the present one.
        scaling_factor: above 1; powers of 2 change no digits of the gradients.
        N: updates in a row after which the scale grows.
        clear_buffer: free what is not needed any more during forward and backward.
        accum_grad: forwards and backwards of a step, whose gradients are added, not averaged.
        weight_decay: rate, if not None; applied to the gradients without scale.
        comm: a connected communicator.
        grads: gradients that `comm` sums over ranks, without division, after the last backward.
            Leave it empty where they are summed during backward.
        communicator_callbacks: what `comm.all_reduce_callback` returned; see Variable.backward.
        retry: after an overflow try again at once with the next data, as NNabla does. False: the
            step is skipped.
    Raises: ArgumentError for an argument that does not fit.

    Micikevicius et al., arXiv:1710.03740.

    >>> import numpy as np, distnn as nn, distnn.functions as F, distnn.parametric_functions as PF
    >>> import distnn.solvers as S
    >>> with nn.context_scope(nn.Context(["cpu:half"])):
    ...     x = nn.Variable((4, 3))
    ...     loss = F.mean(PF.affine(x, 2, name="loss_scaling_example") ** 2)
    >>> solver = S.Sgd(0.1)
    >>> solver.set_parameters(nn.get_parameters())
    >>> def data_feeder():
    ...     x.d = np.ones((4, 3))
    >>> updater = DynamicLossScalingUpdater(solver, loss, data_feeder, scale=1024.0, N=2)
    >>> [updater.update() for _ in range(2)], updater.scale
    ([True, True], 2048.0)
    """

    def __init__(
        self,
        solver: Any,
        loss: Variable | Callable[[], Variable],
        data_feeder: Callable[[], object] = lambda: None,
        scale: float = 8.0,
        scaling_factor: float = 2.0,
        N: int = 2000,
        clear_buffer: bool = True,
        accum_grad: int = 1,
        weight_decay: float | None = None,
        comm: MultiProcessDataParallelCommunicator | None = None,
        grads: Sequence[NdArray] = (),
        *,
        communicator_callbacks: Any = None,
        retry: bool = True,
    ) -> None:
        _check(
            isinstance(loss, Variable) or callable(loss),
            "loss",
            loss,
            "a Variable, or a function that computes and returns one",
        )
        _check(callable(data_feeder), "data_feeder", data_feeder, "a function without arguments")
        _check(0 < scale < math.inf, "scale", scale, "a positive number")
        _check(1 < scaling_factor < math.inf, "scaling_factor", scaling_factor, "a number above 1")
        for name, value in (("N", N), ("accum_grad", accum_grad)):
            _check(isinstance(value, int) and value >= 1, name, value, "an int of 1 or more")
        _check(
            comm is not None or not grads,
            "comm",
            comm,
            f"the communicator that sums the {len(grads)} grads, or no grads",
        )
        _check(
            not grads or communicator_callbacks is None,
            "grads",
            f"{len(grads)} arrays",
            "no grads, since communicator_callbacks sum gradients too",
        )
        self.solver = solver
        self.loss = loss
        self.data_feeder = data_feeder
        self.scale = float(scale)
        self.scaling_factor = float(scaling_factor)
        self.N = N
        self.clear_buffer = clear_buffer
        self.accum_grad = accum_grad
        self.weight_decay = weight_decay
        self.comm = comm
        self.grads = list(grads)
        # nn.data_parallel need not exchange what is summed here.
        self.communicator_callbacks = [] if self.grads else communicator_callbacks
        self.retry = retry
        self._good = 0  # updates since the scale was changed
        self._overflows = 0  # attempts in a row that failed

    def update(self) -> bool:
        """One step: zero_grad, data, forward, backward, sum over ranks, solver.update.

        Returns: whether the parameters were updated; only without `retry` they may not be.
        Raises: SolverError after 101 attempts in a row whose gradients were not finite.
        """
        while self._overflow():
            self._good = 0
            self._overflows += 1
            if self._overflows > _MOST_IN_A_ROW:
                raise SolverError(
                    f"[DynamicLossScalingUpdater.update] {self._overflows} attempts in a row gave "
                    f"infinite or NaN gradients, the last with scale {self.scale:.2g}: it is not "
                    "the scale; check the data, and lower the learning rate"
                )
            self.scale /= self.scaling_factor
            if not self.retry:
                return False
        self._overflows = 0
        self.solver.scale_grad(1 / self.scale)
        if self.weight_decay is not None:
            self.solver.weight_decay(self.weight_decay)
        self.solver.update()
        self._good += 1
        if self._good == self.N:
            self.scale *= self.scaling_factor
            self._good = 0
        return True

    def get_states(self) -> dict[str, float]:
        """What a checkpoint keeps: `save(path, solver, others={"loss scaling": updater})`."""
        return {"scale": self.scale, "good": self._good, "overflows": self._overflows}

    def set_states(self, states: Mapping[str, float]) -> None:
        """Take over what `get_states` returned."""
        self.scale = float(states["scale"])
        self._good = int(states["good"])
        self._overflows = int(states["overflows"])

    def _overflow(self) -> bool:
        """Compute the gradients of scale * loss; whether any is not finite, on any rank."""
        self.solver.zero_grad()
        world = current_world()
        for remaining in reversed(range(self.accum_grad)):
            self.data_feeder()
            if isinstance(self.loss, Variable):
                loss = self.loss
                loss.forward(clear_no_need_grad=self.clear_buffer)
            else:
                loss = self.loss()
            # Callbacks sum once, at the last backward.
            later = remaining and world.communicator is not None
            local = world.communicator.no_sync() if later else nullcontext()
            with local, np.errstate(over="ignore"):  # the scale in the dtype of the loss
                loss.backward(self.scale, self.clear_buffer, self.communicator_callbacks)
        if self.comm is not None and self.grads:
            self.comm.all_reduce(self.grads, division=False, inplace=False)
        found = self.solver.check_inf_or_nan_grad()
        if self.comm is None:
            return found
        # Not all gradients need to be among those that are summed.
        share = self.comm.all_reduce_scalars({"gradients that are not finite": float(found)})
        return share["gradients that are not finite"] > 0


def _check(fits: bool, name: str, value: object, needed: str) -> None:
    if not fits:
        raise ArgumentError(f"[DynamicLossScalingUpdater] {name} is {value!r}; pass {needed}")
