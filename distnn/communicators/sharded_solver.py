"""Sharded solver: each rank keeps the states of, and updates, its share of the parameters (ZeRO-1).

Gradients are summed to the owner of a parameter only, and updated parameters sent to all ranks: as
much traffic as one all-reduce, a share of the memory for states, and a share of the updates.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dtypes import is_float
from ..errors import ArgumentError, SolverError
from ..ndarray import NdArray
from ..solvers.jobs import sums_of_squares
from ..solvers.solver import Solver, SolverHook, SolverState
from ..storage import Storage
from ..transfer import array_module
from ..variable import Variable
from .buckets import AllReduceCallback
from .exchange import present_anywhere
from .header import Agreement, Schedule
from .shards import Shard, SumToOwners, assign, send_to_all, sum_to_owners
from .transport import Transport

if TYPE_CHECKING:
    from .communicator import MultiProcessDataParallelCommunicator


class ShardedSolver:
    """A solver whose states are spread over the ranks; otherwise used like the solver itself.

    Each rank owns neighbouring whole parameters of about equal total size. In place of
    `comm.all_reduce(gradients, division=True)` call `reduce_gradients(division=True)`, in place of
    `comm.all_reduce_callback` make a `reduce_callback`, which sums while backward runs. Both leave
    sums on the owners only, so weight decay, clipping and checks have to come from this object.
    `reduce_gradients`, the checks, `clip_grad_by_global_norm`, `update`, `get_states` and
    `save_states` are collective: all ranks call them. With a callback that has summed all gradients
    on all ranks during backward, `reduce_gradients` is left out.

    The result is that of the solver itself for the same sums. Parameters that are registered later
    go to the ranks that have least; the owner of a registered one never changes.

    Args:
        solver: one without parameters.
        comm: a connected communicator.
        group: name of a group of ranks.

    Rajbhandari et al., arXiv:1910.02054 (stage 1).

    >>> import distnn as nn, distnn.communicators as C, distnn.solvers as S
    >>> import distnn.parametric_functions as PF
    >>> comm = C.MultiProcessDataParallelCommunicator()
    >>> comm.init()
    >>> loss = nn.functions.mean(PF.affine(nn.Variable((4, 3)), 2, name="sharded_example"))
    >>> solver = C.ShardedSolver(S.Adam(), comm)
    >>> solver.set_parameters(nn.get_parameters())
    >>> callback = solver.reduce_callback(division=True)
    >>> loss.forward()
    >>> solver.zero_grad()
    >>> loss.backward(communicator_callbacks=callback)
    >>> solver.update()
    """

    def __init__(
        self, solver: Solver, comm: MultiProcessDataParallelCommunicator, group: str = "world"
    ) -> None:
        if solver.get_parameters():
            raise ArgumentError(
                f"[ShardedSolver] solver has parameters already, {len(solver.get_parameters())} of "
                "them; pass a new one and call set_parameters of the ShardedSolver"
            )
        ranks = comm._group("ShardedSolver", group).ranks
        self._solver = solver
        self._comm = comm
        self._group = group
        self._rank = ranks.index(comm.rank)
        self._size = len(ranks)
        self._parameters: OrderedDict[str, Variable] = OrderedDict()
        self._owner: dict[str, int] = {}
        self._owner_of_gradient: dict[Storage, int] = {}  # the same

    def __repr__(self) -> str:
        return f"<ShardedSolver of {self._solver!r} of {len(self._parameters)}>"

    @property
    def name(self) -> str:
        return self._solver.name

    @property
    def info(self) -> dict[str, float]:
        return self._solver.info

    # -- parameters -------------------------------------------------------------------------------

    def set_parameters(
        self, param_dict: Mapping[str, Variable], reset: bool = True, retain_state: bool = False
    ) -> None:
        """As Solver.set_parameters; with the same parameters in the same order on all ranks."""
        if not isinstance(param_dict, Mapping):
            self._solver.set_parameters(param_dict)  # says what is wrong
        for key in param_dict if retain_state else ():
            old, new = self._parameters.get(key), param_dict[key]
            if old is not None and old.shape != new.shape:  # said on all ranks, not on its owner's
                raise SolverError(
                    f"[{self.name}.set_parameters] {key!r} has shape {new.shape} but its retained "
                    f"state has {old.shape}; pass retain_state=False to start its state anew"
                )
        kept = {} if reset else self._parameters
        owner = {
            k: r for k, r in self._owner.items() if k in kept or (retain_state and k in param_dict)
        }
        coming = [key for key in param_dict if key not in owner]
        if coming:
            load = [0] * self._size
            for key, r in owner.items():
                load[r] += self._parameters[key].size
            ranks = assign([param_dict[key].size for key in coming], load)
            owner.update(zip(coming, ranks, strict=True))
        mine = {key: v for key, v in param_dict.items() if owner[key] == self._rank}
        self._solver.set_parameters(mine, reset, retain_state)
        self._parameters = OrderedDict({**kept, **param_dict})
        self._owner = {key: owner[key] for key in self._parameters}
        self._note_owners()

    def get_parameters(self) -> OrderedDict[str, Variable]:
        """Registered parameters by name, those of all ranks."""
        return OrderedDict(self._parameters)

    def owner(self, key: str) -> int:
        """The rank, of the group, that keeps the states of a parameter."""
        return self._owner[key]

    def remove_parameters(self, keys: Iterable[str]) -> None:
        """Forget parameters and their states."""
        names = list(keys)
        for key in names:
            if key not in self._parameters:
                raise SolverError(
                    f"[{self.name}.remove_parameters] {key!r} is not registered; registered are "
                    f"{list(self._parameters)}"
                )
        self._solver.remove_parameters(k for k in names if self._owner[k] == self._rank)
        for key in names:
            del self._parameters[key], self._owner[key]
        self._note_owners()

    def clear_parameters(self) -> None:
        """Forget all parameters and their states."""
        self.remove_parameters(list(self._parameters))

    # -- gradients --------------------------------------------------------------------------------

    def zero_grad(self) -> None:
        """Mark all gradients as zero, those of other ranks' parameters too."""
        for variable in self._parameters.values():
            variable.grad.zero()

    def reduce_gradients(self, division: bool = False, scale_grad: float = 1) -> None:
        """Sum each gradient over ranks, in place, on the owner of its parameter. Collective.

        Sums are taken in the order of the ranks. Gradients that no rank has stay flagged as zero.

        Args:
            division: divide by the number of ranks.
            scale_grad: multiply the sums by this.
        """
        grads = [variable.grad for variable in self._parameters.values()]
        arrays = self._comm._arrays("reduce_gradients", grads, division)
        present = arrays.present()
        scale = scale_grad / self._size if division else scale_grad

        def job(transport: Transport, agreed: Agreement) -> None:
            written = present_anywhere(transport, agreed.incomplete, present)
            for shards in self._shards(grads, written):
                sum_to_owners(shards, transport, scale)
            for grad, key, flag in zip(grads, self._parameters, written, strict=True):
                if flag and self._owner[key] == self._rank:
                    grad._storage.written()

        self._run("reduce_gradients", arrays.entries, job, not all(present))

    def reduce_callback(
        self, pack_size: int = 1 << 20, division: bool = False, scale_grad: float = 1
    ) -> AllReduceCallback:
        """A callback of `backward` that sums each gradient on its owner, bucket by bucket.

        As `all_reduce_callback` of the communicator, whose settings these are. It reduces the
        gradients of the parameters of now: make it again after set_parameters.
        """
        grads = [variable.grad for variable in self._parameters.values()]
        to_owners = SumToOwners(self._owner_of_gradient)
        return self._comm.all_reduce_callback(
            grads, pack_size, division, self._group, scale_grad, algorithm=to_owners
        )

    def scale_grad(
        self, scale: float, pre_hook: SolverHook = None, post_hook: SolverHook = None
    ) -> None:
        """Multiply all gradients by `scale`."""
        self._solver.scale_grad(scale, pre_hook, post_hook)

    def weight_decay(
        self, decay_rate: float, pre_hook: SolverHook = None, post_hook: SolverHook = None
    ) -> None:
        """As Solver.weight_decay."""
        self._solver.weight_decay(decay_rate, pre_hook, post_hook)

    def weight_decay_is_fused(self) -> bool:
        """True if weight decay is part of the update rule."""
        return self._solver.weight_decay_is_fused()

    def clip_grad_by_norm(
        self, clip_norm: float, pre_hook: SolverHook = None, post_hook: SolverHook = None
    ) -> None:
        """Scale each parameter's gradient down to the norm `clip_norm` if it is larger."""
        self._solver.clip_grad_by_norm(clip_norm, pre_hook, post_hook)

    def clip_grad_by_global_norm(self, clip_norm: float) -> float:
        """Scale all gradients down so that their norm together is at most `clip_norm`. Collective.

        Returns: the norm before.
        """
        if not clip_norm > 0:
            raise ArgumentError(
                f"[{self.name}.clip_grad_by_global_norm] clip_norm is {clip_norm}; pass a positive "
                "number"
            )
        squares = sum(sums_of_squares(self._solver._gradients()))
        norm = float(np.sqrt(self._over_ranks("clip_grad_by_global_norm", squares, "sum")))
        if norm > clip_norm:
            self._solver.scale_grad(clip_norm / norm)
        return norm

    def check_inf_grad(self, pre_hook: SolverHook = None, post_hook: SolverHook = None) -> bool:
        """True, on all ranks, if any gradient holds an infinity. Collective."""
        found = self._solver.check_inf_grad(pre_hook, post_hook)
        return bool(self._over_ranks("check_inf_grad", found, "max"))

    def check_nan_grad(self, pre_hook: SolverHook = None, post_hook: SolverHook = None) -> bool:
        """True, on all ranks, if any gradient holds a NaN. Collective."""
        found = self._solver.check_nan_grad(pre_hook, post_hook)
        return bool(self._over_ranks("check_nan_grad", found, "max"))

    def check_inf_or_nan_grad(
        self, pre_hook: SolverHook = None, post_hook: SolverHook = None
    ) -> bool:
        """True, on all ranks, if any gradient holds an infinity or a NaN. Collective."""
        found = self._solver.check_inf_or_nan_grad(pre_hook, post_hook)
        return bool(self._over_ranks("check_inf_or_nan_grad", found, "max"))

    # -- update -----------------------------------------------------------------------------------

    def learning_rate(self) -> float:
        """The present learning rate, per step."""
        return self._solver.learning_rate()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the following updates."""
        self._solver.set_learning_rate(learning_rate)

    def update(
        self, update_pre_hook: SolverHook = None, update_post_hook: SolverHook = None
    ) -> None:
        """Update the parameters of this rank and get those of the others. Collective."""
        own = [self._owner[key] == self._rank for key in self._parameters]
        data = [variable.data for variable in self._parameters.values()]
        grads = [variable.grad for variable in self._parameters.values()]
        updated = [o and not g._storage.zeroing for o, g in zip(own, grads, strict=True)]
        self._solver.update(update_pre_hook, update_post_hook)
        for array, mine in zip(data, own, strict=True):
            home = array._storage.home
            if not mine:  # to the dtype that the owner's update has brought its array to
                array._cast(home.array.dtype if home is not None else _floating(array.dtype))
        arrays = self._comm._arrays("update", data, False)

        def job(transport: Transport, _: Agreement) -> None:
            written = present_anywhere(transport, True, updated)
            for shards in self._shards(data, written):
                send_to_all(shards, transport)
            for array, mine, flag in zip(data, own, written, strict=True):
                if flag and not mine:
                    array._storage.written()

        self._run("update", arrays.entries, job, only_compared=True)

    # -- states -----------------------------------------------------------------------------------

    def get_states(self) -> OrderedDict[str, SolverState]:
        """States of all parameters by name, copied to every rank. Collective."""
        mine = self._solver.get_states()
        found: OrderedDict[str, SolverState] = OrderedDict()

        def job(transport: Transport, _: Agreement) -> None:
            facts = np.zeros((len(self._parameters), 2), np.int64)  # t, bytes per number
            for i, key in enumerate(self._parameters):
                if key in mine:
                    sizes = [v.data.dtype.itemsize for v in mine[key].pstate.values()]
                    facts[i] = mine[key].t, max(sizes, default=0)
            transport.all_reduce(facts, "sum")
            for (key, variable), (t, width) in zip(
                self._parameters.items(), facts.tolist(), strict=True
            ):
                pstate = {}
                for name in self._solver.states:
                    values = np.empty(variable.shape, f"f{width}")
                    if key in mine:
                        np.copyto(values, mine[key].pstate[name].data.get_data("r"))
                    transport.broadcast(values.reshape(-1).view(np.uint8), self._owner[key])
                    pstate[name] = Variable.from_numpy_array(values)
                found[key] = SolverState(pstate, t)

        self._run("get_states", list(self._parameters), job)
        return found

    def set_states(self, states: Mapping[str, SolverState]) -> None:
        """Copy states and step counts in, by parameter name; each rank takes its own.

        Args:
            states: of all parameters or some; from a job with any number of ranks.
        Raises: SolverError for an unknown name, a missing or unknown state, or a differing shape.
        """
        for key, state in states.items():
            if key not in self._parameters:
                raise SolverError(
                    f"[{self.name}.set_states] {key!r} is not registered; call set_parameters "
                    f"first (registered are {list(self._parameters)})"
                )
            found = {name: variable.shape for name, variable in state.pstate.items()}
            expected = dict.fromkeys(self._solver.states, self._parameters[key].shape)
            if found != expected:
                raise SolverError(
                    f"[{self.name}.set_states] {key!r} has states of shapes {found} but "
                    f"{self.name} keeps {expected}"
                )
        self._solver.set_states({k: s for k, s in states.items() if self._owner[k] == self._rank})

    def save_states(self, path: str) -> None:
        """Write all states and step counts to one file, on the first rank. Collective."""
        from ..solver_file import save_states

        states = self.get_states()
        error = None
        if self._rank == 0:
            try:
                save_states(states, path)
            except Exception as found:
                error = found
        failed = self._over_ranks("save_states", error is not None, "max")
        if error is not None:
            raise error
        if failed:
            raise SolverError(f"[{self.name}.save_states] the first rank could not write {path}")

    def load_states(self, path: str) -> None:
        """Read states and step counts from a file, whoever wrote it; each rank takes its own."""
        from ..solver_file import load_states

        self.set_states(load_states(path, self._parameters, self._solver.states))

    # -- inside -----------------------------------------------------------------------------------

    def _note_owners(self) -> None:
        self._owner_of_gradient.clear()
        for key, variable in self._parameters.items():
            self._owner_of_gradient[variable.grad._storage] = self._owner[key]

    def _run(
        self,
        what: str,
        entries: Sequence[str],
        job: Callable[[Transport, Agreement], Any],
        incomplete: bool = False,
        only_compared: bool = False,
    ) -> None:
        entries = [*entries, f"owners {list(self._owner.values())}"]
        schedule = Schedule(f"ShardedSolver.{what}", entries, only_compared=only_compared)
        self._comm._run(schedule, job, self._group, incomplete)

    def _over_ranks(self, what: str, value: float, operation: str) -> float:
        number = np.array([value], np.float64)

        def job(transport: Transport, _: Agreement) -> None:
            transport.all_reduce(number, operation)

        self._run(what, [], job, only_compared=True)
        return float(number[0])

    def _shards(self, items: Sequence[NdArray], chosen: Sequence[bool]) -> list[list[Shard]]:
        """The chosen arrays as one shard for each rank, by dtype."""
        found: dict[np.dtype, list[Shard]] = {}
        for item, key, flag in zip(items, self._parameters, chosen, strict=True):
            if flag:
                array = item._view(item._storage.materialize())
                module = array_module(array)
                shards = found.setdefault(item.dtype, [Shard(module) for _ in range(self._size)])
                shards[self._owner[key]].append(array)
        return list(found.values())


def _floating(dtype: np.dtype) -> np.dtype:
    return dtype if is_float(dtype) else np.dtype(np.float32)
