"""Solver: parameters, their states, and updates over flat ranges of memory.

A solver keeps per parameter a step count t and states (momentum, ...) that lie at the same offsets
as the parameters in their slabs. An update groups the parameters that got a gradient into runs of
equal t; what it does to a run is the subclass's.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import launching, transfer
from ..capture import Site
from ..context import compute_recorded, current_backend, launch_step
from ..errors import ArgumentError, SolverError
from ..formula import Assignments
from ..hooks import NO_HOOKS, solver_hooks
from ..ndarray import NdArray
from ..parameter_slab import Block, Run, attached
from ..solver_segment import run_solver
from ..step import waiting_calls
from ..storage import Storage
from ..value import version
from ..variable import Variable
from .active import ActiveRuns, Parameter
from .jobs import by_backend, run

if TYPE_CHECKING:
    from ..record import Record

SolverHook = Callable[[], object] | None

# Sets of active parameters whose runs are kept: networks may differ from step to step.
_MOST_RUNS = 64


class SolverState:
    """States of one parameter: `pstate` maps state names to Variables, `t` counts its updates."""

    def __init__(self, pstate: Mapping[str, Variable], t: int) -> None:
        self.pstate = dict(pstate)
        self.t = int(t)

    def __repr__(self) -> str:
        return f"<SolverState {sorted(self.pstate)} t={self.t}>"


class Piece(NamedTuple):
    """A part of an update: neighbouring parameters of equal step count."""

    arrays: list[Any]  # flat, of one size: parameters, gradients, then the states in their order
    t: int  # the number of this update, from 1 on


class Solver:
    """Base of all solvers.

    Args:
        learning_rate: per step.
        fused_decay: weight decay of the rule itself, which `weight_decay(rate)` replaces in the
            next update. None: `weight_decay` adds to the gradients.
        info: the settings that the user passed, under NNabla's names.
    """

    states: tuple[str, ...] = ()  # their names, which are NNabla's
    by_parameter = False  # pieces are single parameters; for rules that use norms

    def __init__(
        self, learning_rate: float, *, fused_decay: float | None = None, **info: float
    ) -> None:
        if not learning_rate >= 0:
            raise ArgumentError(
                f"[{self.name}] the learning rate is {learning_rate}; pass 0 or more"
            )
        for name in ("beta1", "beta2"):
            if name in info and not 0 <= info[name] < 1:
                raise ArgumentError(
                    f"[{self.name}] {name} is {info[name]}; pass a number from 0 on and below 1"
                )
        self.info = {k: v if isinstance(v, bool) else float(v) for k, v in info.items()}
        self._learning_rate = self._first_rate = float(learning_rate)
        self._fused_decay = fused_decay
        self._decay = fused_decay or 0.0  # of the next update
        self._skipped = 0  # updates
        self._guard: Any = None  # looks for gradients that are not finite, on a GPU
        self._guarded: ActiveRuns | None = None  # an update of which that is not known yet
        self._sites: dict[str, Site] = {}  # where what this does may become a CUDA graph
        self._parameters: OrderedDict[str, Parameter] = OrderedDict()
        self._blocks: dict[tuple[int, str], tuple[Block, Any]] = {}
        # By the active parameters and which of them have equal step counts.
        self._runs: dict[tuple[int, ...], ActiveRuns] = {}
        self._latest: tuple[list[bool], ActiveRuns] | None = None  # and whose gradients were zero
        self._grads: tuple[int, list[NdArray]] = (-1, [])  # and the graphs' version of then
        self._touched: tuple[int, list[Storage]] = (-1, [])  # of all parameters; the same
        self._waits_in: Record | None = None  # where calls wait, or waited last

    def step(self, pieces: Sequence[Piece]) -> None:
        """Update the parameters and states of the pieces by their gradients."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.info.items())
        return f"<{self.name}({settings}), {len(self._parameters)} parameters>"

    # -- parameters ---------------------------------------------------------------------------

    def set_parameters(
        self, param_dict: Mapping[str, Variable], reset: bool = True, retain_state: bool = False
    ) -> None:
        """Register parameters by name.

        Args:
            param_dict: name -> Variable, as `nn.get_parameters()` returns.
            reset: forget all others first. False keeps parameters that are not mentioned.
            retain_state: keep state and step count of a name that is registered already; its shape
                must be the same. The new Variable takes the place of the old one in any case.
        Raises: SolverError where a shape differs and retain_state is set.

        >>> import distnn as nn, distnn.parametric_functions as PF, distnn.solvers as S
        >>> y = PF.affine(nn.Variable((2, 3)), 4, name="solver_example")
        >>> solver = S.Momentum(0.1)
        >>> solver.set_parameters(nn.get_parameters(), reset=False, retain_state=True)
        """
        if not isinstance(param_dict, Mapping):
            raise SolverError(
                f"[{self.name}.set_parameters] param_dict is {type(param_dict).__name__}; pass a "
                "dict of name -> Variable, for example nn.get_parameters()"
            )
        for key, variable in param_dict.items():
            if not isinstance(variable, Variable):
                raise SolverError(
                    f"[{self.name}.set_parameters] {key!r} is {type(variable).__name__}; pass "
                    "Variables, for example nn.get_parameters()"
                )
            old = self._parameters.get(key)
            if retain_state and old is not None and old.variable.shape != variable.shape:
                raise SolverError(
                    f"[{self.name}.set_parameters] {key!r} has shape {variable.shape} but its "
                    f"retained state has {old.variable.shape}; pass retain_state=False to start "
                    "its state anew"
                )
        self._launch_step()
        kept = self._parameters
        changed = reset
        if reset:
            self._parameters = OrderedDict()
        for key, variable in param_dict.items():
            old = kept.get(key)
            if old is not None and retain_state:
                changed = changed or old.variable is not variable
                if old.variable.data._storage is not variable.data._storage:
                    old.variable = variable
                    self._place_states(old, old.states)
                old.variable = variable
                self._parameters[key] = old
            else:
                changed = True
                parameter = Parameter(key, variable)
                self._place_states(parameter, None)
                self._parameters[key] = parameter
        if changed:
            self._changed()

    def get_parameters(self) -> OrderedDict[str, Variable]:
        """Registered parameters by name, in the order of registration."""
        return OrderedDict((key, p.variable) for key, p in self._parameters.items())

    def remove_parameters(self, keys: Iterable[str]) -> None:
        """Forget parameters and their states."""
        self._launch_step()
        for key in keys:
            if key not in self._parameters:
                raise SolverError(
                    f"[{self.name}.remove_parameters] {key!r} is not registered; registered are "
                    f"{list(self._parameters)}"
                )
            del self._parameters[key]
        self._changed()

    def clear_parameters(self) -> None:
        """Forget all parameters and their states."""
        self.remove_parameters(list(self._parameters))

    def _place_states(self, parameter: Parameter, values: Mapping[str, Any] | None) -> None:
        """Give states their memory, at the parameter's offset where that is in a slab."""
        data = parameter.variable.data
        slot = data._storage.home if attached(data) is not None else None
        states = {}
        for name in self.states:
            if slot is None:
                dtype = data.dtype if data.dtype.kind == "f" else np.dtype(np.float32)
                state = transfer.backend_of(_memory(data)).zeros(data.size, dtype)
            else:
                state = self._state_block(slot.block, name)[slot.start : slot.stop]
            if values is not None and name in values:
                transfer.copy(state, values[name].reshape(-1))
            elif slot is not None and state.any():
                state[...] = 0
            states[name] = state
        parameter.states = states
        parameter.block = None if slot is None else slot.block
        parameter.start = 0 if slot is None else slot.start

    def _state_block(self, block: Block, name: str) -> Any:
        found = self._blocks.get((id(block), name))
        if found is None:
            found = (block, block.backend.zeros(len(block.data), block.data.dtype))
            self._blocks[(id(block), name)] = found
        return found[1]

    def _changed(self) -> None:
        """Forget what was made of other parameters."""
        self._runs.clear()
        self._latest = None
        self._grads, self._touched = (-1, []), (-1, [])
        used = {id(p.block) for p in self._parameters.values()}
        self._blocks = {key: found for key, found in self._blocks.items() if key[0] in used}

    # -- gradients ----------------------------------------------------------------------------

    def zero_grad(self) -> None:
        """Mark all gradients as zero: the next backward overwrites them. Touches no memory."""
        for grad in self._all_gradients():
            storage = grad._storage
            if storage.record is not None:
                storage.settle()
            if not storage.zeroing:
                grad.zero()

    def _all_gradients(self) -> list[NdArray]:
        """Of all parameters, in their order; looked up anew when graphs have changed."""
        number, grads = self._grads
        if number != version.number:
            grads = [p.variable.grad for p in self._parameters.values()]
            self._grads = version.number, grads
        return grads

    def _active(self) -> list[Parameter]:
        """Parameters that got a gradient since zero_grad; others are skipped everywhere."""
        pairs = zip(self._parameters.values(), self._all_gradients(), strict=True)
        return [parameter for parameter, grad in pairs if not grad._storage.zeroing]

    def _gradients(self) -> list[Any]:
        return [_memory(p.variable.grad) for p in self._active()]

    def scale_grad(
        self, scale: float, pre_hook: SolverHook = None, post_hook: SolverHook = None
    ) -> None:
        """Multiply all gradients by `scale`."""
        self._do(lambda: self._scale_grad(float(scale)), pre_hook, post_hook)

    def _scale_grad(self, scale: float) -> None:
        found = self._active_runs()
        jobs = [([each.grad], [scale]) for each in found.runs]
        self._queue("scale_grad", found, lambda: run(_SCALE, jobs))

    def weight_decay(
        self, decay_rate: float, pre_hook: SolverHook = None, post_hook: SolverHook = None
    ) -> None:
        """Add decay_rate * parameter to each gradient (L2 regularization).

        Solvers with weight decay in their rule (AdamW) use the rate in their next update instead.
        """
        self._do(lambda: self._weight_decay(float(decay_rate)), pre_hook, post_hook)

    def _weight_decay(self, rate: float) -> None:
        if self.weight_decay_is_fused():
            self._decay = rate
        elif rate != 0:
            found = self._active_runs()
            jobs = [([each.grad, each.data], [rate]) for each in found.runs]
            self._queue("weight_decay", found, lambda: run(_DECAY, jobs))

    def weight_decay_is_fused(self) -> bool:
        """True if weight decay is part of the update rule."""
        return self._fused_decay is not None

    def clip_grad_by_norm(
        self, clip_norm: float, pre_hook: SolverHook = None, post_hook: SolverHook = None
    ) -> None:
        """Scale each parameter's gradient down to the norm `clip_norm` if it is larger."""
        if not clip_norm > 0:
            raise ArgumentError(
                f"[{self.name}.clip_grad_by_norm] clip_norm is {clip_norm}; pass a positive number"
            )
        self._do(lambda: self._clip(float(clip_norm)), pre_hook, post_hook)

    def _clip(self, norm: float) -> None:
        found = self._active_runs()
        self._queue("clip_grad_by_norm", found, lambda: _clip(found, norm), norm)

    def check_inf_grad(self, pre_hook: SolverHook = None, post_hook: SolverHook = None) -> bool:
        """True if any gradient holds an infinity."""
        return self._check("isinf", pre_hook, post_hook)

    def check_nan_grad(self, pre_hook: SolverHook = None, post_hook: SolverHook = None) -> bool:
        """True if any gradient holds a NaN."""
        return self._check("isnan", pre_hook, post_hook)

    def check_inf_or_nan_grad(
        self, pre_hook: SolverHook = None, post_hook: SolverHook = None
    ) -> bool:
        """True if any gradient holds an infinity or a NaN."""
        return self._check("not isfinite", pre_hook, post_hook)

    def _check(self, test: str, pre_hook: SolverHook, post_hook: SolverHook) -> bool:
        with _Hooked(pre_hook, post_hook):
            groups = by_backend((found.grad for found in self._active_runs().runs), lambda g: g)
            return any(backend.any_of(test, grads) for backend, grads in groups)

    # -- update -------------------------------------------------------------------------------

    def learning_rate(self) -> float:
        """The present learning rate, per step."""
        return self._learning_rate

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the following updates."""
        if not learning_rate >= 0:
            raise ArgumentError(
                f"[{self.name}.set_learning_rate] learning_rate is {learning_rate}; pass 0 or more"
            )
        self._launch_step()
        self._learning_rate = float(learning_rate)

    def update(
        self,
        update_pre_hook: SolverHook = None,
        update_post_hook: SolverHook = None,
        *,
        skip_if_nonfinite: bool = False,
    ) -> None:
        """Update the parameters by their gradients.

        A parameter that got no gradient since `zero_grad` is skipped: its states and its step count
        stay as they are.

        Args:
            skip_if_nonfinite: skip all where any gradient holds an infinity or a NaN. On a GPU
                the host does not wait for the answer; `skipped_updates` counts them.

        >>> import distnn as nn, distnn.solvers as S
        >>> w = nn.Variable.from_numpy_array([1.0, 2.0], need_grad=True)
        >>> solver = S.Sgd(1.0)
        >>> solver.set_parameters({"w": w})
        >>> w.g = [1, float("inf")]
        >>> solver.update(skip_if_nonfinite=True)
        >>> w.d.tolist(), solver.skipped_updates()
        ([1.0, 2.0], 1)
        """
        self._do(lambda: self._update_active(skip_if_nonfinite), update_pre_hook, update_post_hook)

    def _update_active(self, skip_if_nonfinite: bool) -> None:
        with np.errstate(all="ignore"):
            self._settle()
            found = self._active_runs()
            if skip_if_nonfinite:
                self._update_if_finite(found)
            else:
                self._update(found)
            self._decay = self._fused_decay or 0.0

    def _update(self, found: ActiveRuns) -> None:
        self._queue("update", found, lambda: self.step(_pieces(found)))
        found.updated()

    def _update_if_finite(self, found: ActiveRuns) -> None:
        backend = found.backend
        if backend is not None and backend.captures:
            if self._guard is None:
                self._guard = backend.guard()
            self._queue("update if finite", found, lambda: self._step_if_finite(found))
            launching.afterwards(self._guard.queued)
            self._guarded = found
            found.updated()
            return
        launching.launch_waiting()
        groups = by_backend((each.grad for each in found.runs), lambda grad: grad)
        if any(backend.any_of("not isfinite", grads) for backend, grads in groups):
            self._skipped += 1
        else:
            self._update(found)

    def _step_if_finite(self, found: ActiveRuns) -> None:
        self._guard.look([each.grad for each in found.runs])
        with self._guard:
            self.step(_pieces(found))

    def _do(self, work: Callable[[], None], pre: SolverHook, post: SolverHook) -> None:
        """Do a method's work between its hooks; in a step it may wait (step.py)."""
        hooks = solver_hooks((pre, post))
        if hooks is NO_HOOKS:
            record = waiting_calls()
            if record is not None and current_backend().captures:
                storages = self._all_storages()
                if record.wait(work, storages, storages):
                    self._waits_in = record
                    return
        launch_step()
        with _Hooked(pre, post):
            work()

    def _all_storages(self) -> list[Storage]:
        number, storages = self._touched
        if number != version.number:
            storages = [p.variable.data._storage for p in self._parameters.values()]
            storages += [grad._storage for grad in self._all_gradients()]
            self._touched = version.number, storages
        return storages

    def _launch_step(self) -> None:
        """Launch what waits, since what it depends on is read or changed."""
        if self._waits_in is not None:
            self._waits_in.launch()
            self._waits_in = None

    def _queue(
        self, what: str, found: ActiveRuns, work: Callable[[], None], *constants: float
    ) -> None:
        """Run work on the memory of active parameters; on a GPU as a graph, if that is captured.

        Args:
            constants: numbers of the work that are no numbers of rules.
        """
        backend = found.backend
        if backend is None or not backend.captures:
            launching.launch_waiting()
            work()
            return
        site = self._sites.get(what)
        if site is None or site.backend is not backend:
            site = self._sites[what] = Site(f"{what} of {self.name}", backend)
        run_solver(site, found, work, constants)

    def skipped_updates(self) -> int:
        """How many updates were skipped by `skip_if_nonfinite`; waits for the last one."""
        self._launch_step()
        self._settle()
        return self._skipped

    def _settle(self) -> None:
        """Learn whether the last update on a GPU was skipped; then it does not count.

        Before the next update the GPU is long past it, and the host waits for nothing.
        """
        if self._guarded is not None:
            launching.launch_if_due(self._guard.queued)
            found, self._guarded = self._guarded, None
            if self._guard.stopped():
                self._skipped += 1
                self._latest = None
                for parameter in found.parameters:
                    parameter.t -= 1

    def _schedule(self) -> float:
        """What a schedule has made of the first learning rate: a factor."""
        return self._learning_rate / self._first_rate if self._first_rate else 1.0

    def _active_runs(self) -> ActiveRuns:
        """Runs of active parameters of equal step count."""
        zeroing = [*map(_ZEROING, self._all_gradients())]
        latest = self._latest
        # Step counts that were equal still are: nothing else was updated in between.
        if latest is None or latest[0] != zeroing or not latest[1].are_current():
            latest = self._latest = zeroing, self._find_runs()
        return latest[1]

    def _find_runs(self) -> ActiveRuns:
        active = self._active()
        numbers: dict[int, int] = {}  # of step counts, which themselves grow
        key = (*map(id, active), *[numbers.setdefault(p.t, len(numbers)) for p in active])
        found = self._runs.get(key)
        if found is None or not found.are_current():
            launching.launch_waiting()
            for parameter in active:
                self._prepare(parameter)
            groups: dict[int, list[Parameter]] = {}
            for i, parameter in enumerate(active):
                groups.setdefault(i if self.by_parameter else parameter.t, []).append(parameter)
            if len(self._runs) >= _MOST_RUNS:
                self._runs.clear()
            found = self._runs[key] = ActiveRuns(groups.values(), self._states_of)
        return found

    def _states_of(self, run: Run, first: Parameter) -> list[Any]:
        """The states of a run, whose first parameter is `first`."""
        if run.block is None or len(run.members) == 1:
            return [first.states[name] for name in self.states]
        return [self._state_block(run.block, name)[run.start : run.stop] for name in self.states]

    def _prepare(self, parameter: Parameter) -> None:
        """Write pending values, and move memory back into its slot if a dtype change took it away.

        Parameter, gradient and states then lie in one memory: the device's if one of them does.
        """
        data, grad = parameter.variable.data, parameter.variable.grad
        on_host = [transfer.on_host(_memory(array)) for array in (data, grad)]
        if on_host[0] != on_host[1]:
            moved, other = (data, grad) if on_host[0] else (grad, data)
            backend = transfer.backend_of(_memory(other))
            moved._storage.place(backend.convert(moved._storage.array, moved.dtype))
        storage = data._storage
        home = storage.home
        array = _memory(data)
        if home is not None and array is not home.array and data._whole():
            transfer.copy(home.array, array)
            storage.place(home.array)
            array = home.array
        elif array.dtype.kind != "f":
            data.cast(np.float32)
            array = _memory(data)
        slot = attached(data)
        states = next(iter(parameter.states.values()), array)
        if parameter.block is not (None if slot is None else slot.block) or transfer.on_host(
            states
        ) != transfer.on_host(array):
            self._place_states(parameter, parameter.states)
            self._runs.clear()

    # -- states -------------------------------------------------------------------------------

    def get_states(self) -> OrderedDict[str, SolverState]:
        """States by parameter name; the Variables share memory with the solver."""
        self._launch_step()
        self._settle()
        found: OrderedDict[str, SolverState] = OrderedDict()
        for key, parameter in self._parameters.items():
            pstate = {}
            for name, state in parameter.states.items():
                storage = Storage(parameter.variable.shape, state.dtype, None)
                storage.place(state.reshape(parameter.variable.shape))
                variable = Variable(parameter.variable.shape)
                variable.data = NdArray._of(storage, storage.shape)
                pstate[name] = variable
            found[key] = SolverState(pstate, parameter.t)
        return found

    def set_states(self, states: Mapping[str, SolverState]) -> None:
        """Copy states and step counts in, by parameter name.

        Raises: SolverError for an unknown name, a missing or unknown state, or a differing shape.
        """
        for key, state in states.items():
            parameter = self._parameters.get(key)
            if parameter is None:
                raise SolverError(
                    f"[{self.name}.set_states] {key!r} is not registered; call set_parameters "
                    f"first (registered are {list(self._parameters)})"
                )
            if set(state.pstate) != set(self.states):
                raise SolverError(
                    f"[{self.name}.set_states] {key!r} has states {sorted(state.pstate)} but "
                    f"{self.name} keeps {sorted(self.states)}"
                )
            for name, variable in state.pstate.items():
                if variable.shape != parameter.variable.shape:
                    raise SolverError(
                        f"[{self.name}.set_states] state {name!r} of {key!r} has shape "
                        f"{variable.shape} but the parameter {parameter.variable.shape}"
                    )
        self._launch_step()
        self._settle()
        for key, state in states.items():
            parameter = self._parameters[key]
            for name, variable in state.pstate.items():
                transfer.copy(parameter.states[name], variable.data.get_data("r").reshape(-1))
            parameter.t = state.t
        self._latest = None

    def save_states(self, path: str) -> None:
        """Write states and step counts to a file; see distnn.solver_file."""
        from ..solver_file import save_states

        save_states(self.get_states(), path)

    def load_states(self, path: str) -> None:
        """Read states and step counts from a file; see distnn.solver_file."""
        from ..solver_file import load_states

        self.set_states(load_states(path, self._parameters, self.states))


_ZEROING = operator.attrgetter("_storage.zeroing")
_SCALE = Assignments("g = scale * g", ("g",), ("scale",))
_DECAY = Assignments("g = g + rate * w", ("g", "w"), ("rate",))


def _clip(found: ActiveRuns, norm: float) -> None:
    gradients = (_memory(parameter.variable.grad) for parameter in found.parameters)
    for backend, mine in by_backend(gradients, lambda gradient: gradient):
        backend.clip(_SCALE, mine, norm)


def _pieces(found: ActiveRuns) -> list[Piece]:
    return [
        Piece(arrays, first.t + 1) for arrays, first in zip(found.arrays, found.first, strict=True)
    ]


def _memory(array: NdArray) -> Any:
    """The array's memory, with pending values written."""
    storage = array._storage
    values = storage.array
    if values is None or storage.pending is not None or storage.host is not None:
        values = storage.materialize()
    return array._view(values)


class _Hooked:
    """Runs the hooks of a solver's method before and after it."""

    def __init__(self, pre: SolverHook, post: SolverHook) -> None:
        self.pre, self.post = solver_hooks((pre, post))

    def __enter__(self) -> None:
        compute_recorded()  # with the parameters as they are
        for hook in self.pre:
            hook()

    def __exit__(self, kind: object, *exception: object) -> None:
        if kind is None:
            for hook in self.post:
                hook()
