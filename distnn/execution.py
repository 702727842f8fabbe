"""Execution: a plan bound to one live graph, and how it runs forward and backward.

Arrays belong to the graph (to its values, and to its nodes where gradients read them), never to the
plan: two live graphs of one structure do not disturb each other. Gradients of intermediate values
live only while a backward runs, unless the user asked to keep them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary, ref

import numpy as np

from . import transfer
from .backend import Backend
from .backward_program import backward_program
from .backward_segment import run_backward
from .capture import Site, shared_site
from .context import compute_recorded, launch_step
from .derivative import bind, gradients_by_rules
from .errors import GraphError
from .forward_program import forward_program
from .forward_segment import run_forward
from .graph import Hook, Node, Value, nodes_of, version
from .hooks import NO_HOOKS, function_hooks
from .memory import owns_memory
from .memory_budget import current_budget, fitting
from .ndarray import NdArray
from .plan import BackwardStep, Contribution, Graph, Plan, plans
from .recompute import compute_again, forgotten, marked
from .rematerialization import sparing
from .step import waiting_calls
from .storage import Storage

if TYPE_CHECKING:
    from .variable import Variable

Hooks = tuple[Hook | None, Hook | None]


class ReadyCallback(Protocol):
    """What backward tells of gradients that are complete (a communicator's callback)."""

    def begin(self, coming: Sequence[Storage], plan: Plan) -> None:
        """A backward of this structure begins that will complete these storages."""

    def ready(self, storage: Storage) -> None:
        """This storage has got its last gradient of the running backward."""

    def finish(self) -> None:
        """The backward is over."""


def forward(
    roots: Sequence[Value], clear_buffer: bool, clear_no_need_grad: bool, hooks: Hooks
) -> None:
    """Compute the roots; see Variable.forward."""
    budget = current_budget() if clear_no_need_grad and not clear_buffer else None
    if _forward_waits(roots, (clear_buffer, clear_no_need_grad), budget, hooks):
        return
    launch_step()
    compute_recorded()
    _execution(roots, budget).forward(clear_buffer, clear_no_need_grad, hooks)


def forward_all(
    variables: Sequence[Variable],
    clear_buffer: bool = False,
    clear_no_need_grad: bool = False,
    function_pre_hook: Hook | None = None,
    function_post_hook: Hook | None = None,
) -> None:
    """Compute several Variables in one pass; what they share is computed once.

    The Variables themselves are not cleared. Other arguments as in `Variable.forward`.

    >>> import distnn as nn
    >>> x = nn.Variable((2,))
    >>> x.d = 1
    >>> a, b = x + 1, x + 2
    >>> nn.forward_all([a, b]); float(a.d[0]), float(b.d[0])
    (2.0, 3.0)
    """
    roots = list({id(v._value): v._value for v in variables if v.parent is not None}.values())
    if roots:
        hooks = (function_pre_hook, function_post_hook)
        forward(roots, clear_buffer, clear_no_need_grad, hooks)


def backward(
    root: Value,
    seed: Any,
    clear_buffer: bool,
    callbacks: Sequence[ReadyCallback],
    hooks: Hooks,
) -> None:
    """Add the gradients of the leaves; see Variable.backward."""
    if (
        clear_buffer
        and not callbacks
        and type(seed) in (int, float)
        and _backward_waits(root, seed, hooks)
    ):
        return
    launch_step()
    compute_recorded()
    if root.parent is None:
        raise GraphError(
            "[Variable.backward] this Variable is a leaf: no function computes it; call "
            "backward() on a result"
        )
    _execution([root]).backward(root, seed, clear_buffer, callbacks, hooks)


def _forward_waits(
    roots: Sequence[Value], flags: tuple[bool, bool], budget: int | None, hooks: Hooks
) -> bool:
    """Let a forward wait in a step (step.py), if it is captured."""
    record = waiting_calls()
    if record is None or len(roots) > 1 or function_hooks(hooks) is not NO_HOOKS:
        return False
    execution = roots[0].execution
    if not isinstance(execution, Execution) or execution.version != version.number:
        return False
    bindings = execution.captured_forward(flags)
    if bindings is None or execution.budget != budget:
        return False
    return record.wait(lambda: execution.forward(*flags, hooks), bindings.touched, bindings.leaves)


def _backward_waits(root: Value, seed: float, hooks: Hooks) -> bool:
    """Let a backward wait in a step: a captured one, or one behind calls that wait."""
    record = waiting_calls()
    if record is None or function_hooks(hooks) is not NO_HOOKS:
        return False
    execution = root.execution
    if isinstance(execution, Execution) and execution.version == version.number:
        known = execution
        found = known.captured_backward()
        if found is None:
            return False
        touched, read = found
        return record.wait(lambda: known.backward(root, seed, True, (), hooks), touched, read)
    gradients = record.read_by_backward(root)
    if gradients is None or not root.need_grad:
        return False

    def run(held: NdArray = root.data) -> None:  # as if somebody will look at it
        _execution([root]).backward(root, seed, True, (), hooks)

    return record.wait(run, gradients, gradients)


_BACKWARD = -1  # in place of a budget


def _execution(roots: Sequence[Value], budget: int | None = _BACKWARD) -> Execution:
    """The execution of the graph that ends in `roots`; remembered while the graph is unchanged.

    Args:
        budget: of memory, for a forward. It forgets what is marked for recompute, and what it has
            to. Backward has to know what the last forward forgot.
    """
    execution = _remembered(roots)
    if (
        execution is not None
        and execution.version == version.number
        and budget in (_BACKWARD, execution.budget)
    ):
        if isinstance(execution, Known):
            execution = roots[0].execution = execution.begin(roots[0])
        return execution
    if len(roots) == 1:
        roots[0].execution = None  # it holds results
    settled = None if budget == _BACKWARD else _forget(roots, budget)
    number = version.number
    graph, plan = settled or _planned(Graph(roots))
    execution = Execution(plan, graph.nodes, graph.leaves, number, budget)
    _remember(roots, execution)
    return execution


# Executions of several roots, which are part of the key; by the root that was made last, to which
# none of the nodes leads.
_of_several: WeakKeyDictionary[Value, tuple[list[ref[Value]], Execution]] = WeakKeyDictionary()


def _remembered(roots: Sequence[Value]) -> Execution | Known | None:
    if len(roots) == 1:
        return roots[0].execution
    known, execution = _of_several.get(_made_last(roots), ((), None))
    return execution if [each() for each in known] == [*roots] else None


def _remember(roots: Sequence[Value], execution: Execution) -> None:
    if len(roots) == 1:
        roots[0].execution = execution
    else:
        _of_several[_made_last(roots)] = [ref(root) for root in roots], execution


def _made_last(roots: Sequence[Value]) -> Value:
    return max(roots, key=lambda root: -1 if root.parent is None else root.parent.order)


def _planned(graph: Graph) -> tuple[Graph, Plan]:
    return graph, plans.plan(graph)


def _forget(roots: Sequence[Value], budget: int | None) -> tuple[Graph, Plan] | None:
    """Settle what the nodes of a static graph forget in their next forward.

    Returns: the graph and its plan, if that is known now.
    """
    nodes = nodes_of(roots)
    settled = None
    if any(node.eager for node in nodes):
        forgets = [node.forgets if node.eager else marked(node) for node in nodes]
    else:
        graph, asked = _planned(Graph(roots, upcoming=True))
        held = graph.held()
        plan = sparing(asked, held) if budget is None else fitting(asked, budget, held)
        forgets = [plan.forgets(k) for k in range(len(nodes))]
        settled = (graph, plan) if plan is asked else None
    for node, mask in zip(nodes, forgets, strict=True):
        if node.forgets != mask:
            node.forgets = mask
            version.changed()
    return settled


class Execution:
    """A plan and the live graph on which it runs."""

    __slots__ = (
        "_backward_site",
        "_bindings",
        "_grads",
        "_programs",
        "budget",
        "leaves",
        "nodes",
        "plan",
        "version",
    )

    def __init__(
        self,
        plan: Plan,
        nodes: list[Node],
        leaves: dict[int, Value],
        number: int,
        budget: int | None,
    ) -> None:
        self.version = number
        self.budget = budget  # for which it was settled what nodes forget
        self.plan = plan
        self.nodes = nodes
        self.leaves = leaves
        # Steps of the plan with the nodes and values of this graph.
        self._programs: dict[tuple[bool, ...], list[tuple[Any, ...]]] = {}
        # What a program of a forward works on; False before the first forward, None where there is
        # no program.
        self._bindings: dict[tuple[bool, bool], _Bindings | bool | None] = {}
        self._grads: list[Any] = []
        self._backward_site: Site | None = None

    def _bound(self, key: tuple[bool, ...], steps: Sequence[Any]) -> list[tuple[Any, ...]]:
        """(step, node, values to clear) of each step.

        To hold the values is no cycle: of those that are cleared none leads to the root, which
        alone holds the execution.
        """
        program = self._programs.get(key)
        if program is None:
            program = self._programs[key] = [
                (step, self.nodes[step.node], self._values(step.clears)) for step in steps
            ]
        return program

    def _values(self, slots: Sequence[int]) -> list[Value]:
        return [value for value in map(self._value, slots) if value is not None]

    def _value(self, slot: int) -> Value | None:
        """The live Value of a slot. Results are asked of their nodes: to hold them is a cycle."""
        leaf = self.leaves.get(slot)
        if leaf is not None:
            return leaf
        k = self.plan.producer[slot]
        return self.nodes[k].live_output(slot - self.plan.calls[k].targets[0])

    # -- forward ------------------------------------------------------------------------------

    def forward(self, clear_buffer: bool, clear_no_need_grad: bool, hooks: Hooks) -> None:
        if clear_buffer:
            reason = (
                "forward(clear_buffer=True) freed it; set persistent=True to keep it, or use "
                "clear_no_need_grad=True if backward follows"
            )
        elif clear_no_need_grad:
            reason = "forward(clear_no_need_grad=True) freed it; set persistent=True to keep it"
        else:
            reason = "forward freed what has recompute=True; set persistent=True to keep it"
        pre, post = function_hooks(hooks)
        flags = clear_buffer, clear_no_need_grad
        if not pre and not post and self._forward_by_program(flags):
            return
        program = self._bound(flags, self.plan.forward(clear_buffer, clear_no_need_grad))
        with np.errstate(all="ignore"):
            for step, node, clears in program:
                for hook in pre:
                    hook(node)
                node.execute(step.inplace)
                for hook in post:
                    hook(node)
                if clears:
                    _clear(clears, reason)

    def _forward_by_program(self, flags: tuple[bool, bool]) -> bool:
        """Run a forward by its program; False where it has none, or is the first of this graph."""
        bindings = self._bindings.get(flags, False)
        if bindings is False:
            self._bindings[flags] = True  # a graph that runs again is worth a program
            return False
        if isinstance(bindings, _Bindings):
            for node, index in bindings.unheld:
                if node.live_output(index) is not None:
                    bindings = True
        if bindings is True:
            bindings = self._bindings[flags] = self._bind(flags)
        if not isinstance(bindings, _Bindings):
            return False
        for leaf in bindings.leaves:
            if leaf.array is None and leaf.pending is None:
                return False  # and the walk says for which function
        for storage in bindings.kept_storages:
            if storage.volatile:
                return False  # since a function was called that changes it: the walk keeps copies
        with np.errstate(all="ignore"):
            arguments = self.nodes, bindings.data, bindings.storages, bindings.kept
            if bindings.site is None:
                bindings.program(*arguments)
            else:
                run_forward(bindings.site, self.plan, bindings.program, *arguments)
        return True

    def captured_forward(self, flags: tuple[bool, bool]) -> _Bindings | None:
        """What the program of a forward works on, if that is captured."""
        bindings = self._bindings.get(flags)
        if not isinstance(bindings, _Bindings) or bindings.site is None:
            return None
        return bindings if bindings.site.segments else None

    def captured_backward(self) -> tuple[list[Storage], list[Storage]] | None:
        """What a captured backward touches, and reads of it; None if it is not captured."""
        site = self._backward_site
        if site is None or not site.segments or not self._grads:
            return None
        grads = [grad._storage for grad in self._grads if grad is not None]
        touched = [
            storage
            for bindings in self._bindings.values()
            if isinstance(bindings, _Bindings)
            for storage in bindings.touched
        ]
        leaves = [leaf.data._storage for leaf in self.leaves.values()]
        return [*grads, *touched, *leaves], [*grads, *leaves]

    def _bind(self, flags: tuple[bool, bool]) -> _Bindings | None:
        """What the program of a forward works on; None where it cannot."""
        plan = self.plan
        program = plan.program(("forward", *flags), lambda: forward_program(plan, *flags))
        if program is None or any(node.eager for node in self.nodes):
            return None
        steps = plan.forward(*flags)
        gone = {slot for step in steps for slot in step.clears}
        storages: list[Storage | None] = [None] * plan.n_slots
        data: list[NdArray | None] = [None] * plan.n_slots
        kept: list[tuple[NdArray, ...]] = []
        unheld: list[tuple[Node, int]] = []
        for slot, leaf in self.leaves.items():
            data[slot] = leaf.data
        for call, node, positions in zip(plan.calls, self.nodes, plan.kept, strict=True):
            for slot in call.targets:
                value = self._value(slot)
                if value is not None:
                    data[slot] = value.data
                    storages[slot] = value.data._storage
                else:  # nobody holds it, but a gradient reads it
                    spec = call.setup.results[slot - call.targets[0]]
                    storage = Storage(spec.shape, spec.dtype, None)
                    data[slot] = NdArray._of(storage, spec.shape)
                    if slot in gone:
                        storage.clear("forward(clear_buffer=True) freed it")
                        continue
                    storages[slot] = storage
                    unheld.append((node, slot - call.targets[0]))
            arrays: list[Any] = [None if v is None else v.data for v in node.sources]
            arrays += [data[slot] for slot in call.targets]
            first_saved = len(call.sources) + len(call.targets)
            found = []
            for position in positions:
                if position >= first_saved:
                    spec = call.setup.results[position - len(call.sources)]
                    storages.append(Storage(spec.shape, spec.dtype, None))
                    found.append(NdArray._of(storages[-1], spec.shape))  # type: ignore[arg-type]
                else:
                    found.append(arrays[position])
            kept.append(tuple(found))
            if plan.keeps(len(kept) - 1):
                node.prepare(positions)
        leaves = [leaf.data._storage for leaf in self.leaves.values()]
        kept_storages = list({array._storage for arrays in kept for array in arrays})
        site = self._site("forward")
        touched = [*leaves, *(storage for storage in storages if storage is not None)]
        return _Bindings(
            program, leaves, data, storages, kept, kept_storages, unheld, site, touched
        )

    def _site(self, what: str) -> Site | None:
        """Where a program of this graph runs, if it may become a CUDA graph."""
        backend = self.plan.calls[0].setup.backend
        if not backend.captures:
            return None
        if self.nodes[0].eager:  # the next iteration's graph is another one
            return shared_site(self.plan, lambda: f"{what} of {self.plan.name()}", backend)
        return Site(f"{what} of {self.plan.name()}", backend)

    # -- backward -----------------------------------------------------------------------------

    def backward(
        self,
        root: Value,
        seed: Any,
        clear_buffer: bool,
        callbacks: Sequence[ReadyCallback],
        hooks: Hooks,
    ) -> None:
        plan = self.plan
        steps = plan.backward(clear_buffer)
        if not steps:
            raise GraphError(
                "[Variable.backward] no gradient comes through to a leaf that needs one: "
                + (
                    "functions without gradient (comparisons, floor's kin, need_grad=False on the "
                    "way) lie between"
                    if plan.gradients
                    else "none has need_grad=True (parameters have it unless fix_parameters=True)"
                )
            )
        pre, post = function_hooks(hooks)
        if clear_buffer and not pre and not post and plan.is_used_again():
            program = plan.program(("backward",), lambda: backward_program(plan))
            if program is not None:
                self._backward_by_program(program, root, seed, steps, callbacks)
                return
        gradients: list[_Gradient | None] = [None] * plan.n_slots
        gradients[plan.roots[0]] = _seed_gradient(root, seed)
        again: dict[int, NdArray] = {}  # what is computed again, by slot
        kept = None if not clear_buffer else plan.persistent | plan.wanted
        reason = "backward(clear_buffer=True) freed it; set persistent=True to keep it"
        if callbacks:
            coming = [self.leaves[s].grad._storage for step in steps for s in step.ready]
            for callback in callbacks:
                callback.begin(coming, plan)
        with np.errstate(all="ignore"):
            for step, node, clears in self._bound((clear_buffer,), steps):
                for hook in pre:
                    hook(node)
                outer = [self._outer(gradients, node, i, s) for i, s in enumerate(step.targets)]
                if kept is None or not kept.isdisjoint(step.targets):
                    self._keep_gradients(step, gradients, kept, plan.roots[0])
                for slot in step.targets:
                    if slot >= 0:
                        gradients[slot] = None
                for made in step.again:
                    compute_again(plan, self.nodes, made, again)
                found = forgotten(plan, step.node, again)
                self._run(step, node, outer, gradients, found)
                for slot in step.drops:
                    del again[slot]
                del outer, found
                if clear_buffer:
                    node.release()
                    _clear(clears, reason)
                for hook in post:
                    hook(node)
                for slot in step.ready:
                    for callback in callbacks:
                        callback.ready(self.leaves[slot].grad._storage)
            for slot in plan.wanted:
                gradient = gradients[slot]
                value = self._value(slot)
                if gradient is not None and value is not None:
                    _give(value, gradient)
            for callback in callbacks:
                callback.finish()

    def _backward_by_program(
        self,
        program: Callable[..., None],
        root: Value,
        seed: Any,
        steps: Sequence[BackwardStep],
        callbacks: Sequence[ReadyCallback],
    ) -> None:
        grads = self._grads
        if not grads:
            grads += [None] * self.plan.n_slots
            for slot in self.plan.gradients:
                grads[slot] = self.leaves[slot].grad
        # A graph that runs once is asked only for what is let go.
        bound = None if self.nodes[0].eager else self._bound((True,), steps)
        reason = "backward(clear_buffer=True) freed it; set persistent=True to keep it"
        if callbacks:
            coming = [grads[s]._storage for step in steps for s in step.ready]
            for callback in callbacks:
                callback.begin(coming, self.plan)

        def clear(number: int) -> None:
            step = steps[number]
            _clear(self._values(step.clears) if bound is None else bound[number][2], reason)

        def tell(storage: Storage) -> None:
            for callback in callbacks:
                callback.ready(storage)

        def run(ready: Callable[[Storage], None] | None) -> None:
            gradient = _seed_gradient(root, seed)
            # Nobody else holds the array, so that the program can let it go.
            array, own = [gradient.array], gradient.own
            del gradient
            program(
                self.nodes, grads, array.pop(), own, ready, clear, _gradient_memory, _add_to_leaf
            )

        if self._backward_site is None:
            self._backward_site = self._site("backward")
        site = self._backward_site
        with np.errstate(all="ignore"):
            if site is None:
                run(tell if callbacks else None)
            else:
                run_backward(
                    site, self.plan, steps, program, run, self.nodes, grads, seed,
                    tell if callbacks else None, callbacks, clear, _gradient_memory, _add_to_leaf,
                )  # fmt: skip
        for callback in callbacks:
            callback.finish()

    def _outer(self, gradients: list[_Gradient | None], node: Node, index: int, slot: int) -> Any:
        """The gradient that comes in for an output of `node`; None if there is none."""
        gradient = None if slot < 0 else gradients[slot]
        if gradient is None:
            return None
        setup = node.setup
        array = setup.backend.owned(gradient.array, setup.results[index].dtype)
        if array is not gradient.array:  # it comes from a function of another context
            gradient.array, gradient.own = array, True
        return array

    def _keep_gradients(
        self,
        step: BackwardStep,
        gradients: list[_Gradient | None],
        kept: frozenset[int] | None,
        root: int,
    ) -> None:
        """Give intermediate values their gradient, now complete, where users may read it."""
        for slot in step.targets:
            gradient = None if slot < 0 else gradients[slot]
            if gradient is None or slot == root or (kept is not None and slot not in kept):
                continue
            value = self._value(slot)
            if value is not None:
                _give(value, gradient)

    def _run(
        self,
        step: BackwardStep,
        node: Node,
        outer: list[Any],
        gradients: list[_Gradient | None],
        again: dict[int, NdArray],
    ) -> None:
        """Compute and deliver the gradients of one node's inputs."""
        setup = node.setup
        backend = setup.backend
        arrays = node.kept_arrays(again)
        reads = setup.reads(step.need)
        if reads.fast:
            packed = [None if gradient is None else backend.packed(gradient) for gradient in outer]
            options = bind(reads.fast_bindings, arrays, packed, node.operands)
            outs: list[Any] = [None] * len(setup.input_shapes)
            for c in step.contributions:
                shape = setup.input_shapes[c.source]
                if c.leaf and c.first:
                    outs[c.source] = _gradient_memory(self.leaves[c.slot].grad, shape, backend)
                else:
                    outs[c.source] = backend.empty(shape, backend.dtype)  # type: ignore[arg-type]
            if setup.scratch:
                options["scratch"] = backend.empty((setup.scratch,), np.dtype(np.uint8))
            setup.implementation.backward(
                backend.xp, reads.need, **options, out=setup.declaration.per_input(outs)
            )
            for c in step.contributions:
                self._deliver(c, outs[c.source], True, gradients, backend)
            return
        for i, gradient in enumerate(outer):
            if gradient is None:
                spec = setup.results[i]
                outer[i] = backend.full(spec.shape, 0, spec.dtype)
        found = gradients_by_rules(setup, backend.xp, step.need, arrays, outer, node.operands)
        # In the order of the inputs, as the contributions are.
        for c, (_, gradient) in zip(step.contributions, found, strict=True):
            own = not c.leaf and owns_memory(gradient)
            if own:
                own = not any(gradient is a for a in (*arrays.values(), *outer))
            self._deliver(c, gradient, own, gradients, backend)

    def _deliver(
        self,
        c: Contribution,
        array: Any,
        own: bool,
        gradients: list[_Gradient | None],
        backend: Backend,
    ) -> None:
        """Write or add a contribution; `own` says that nobody else refers to `array`."""
        if c.leaf:
            _add_to_leaf(self.leaves[c.slot].grad, array, c.first, backend)
            return
        present = gradients[c.slot]
        if present is None:
            gradients[c.slot] = _Gradient(array, own)
        elif present.own and backend.holds(present.array):
            backend.add(present.array, array, present.array)
        else:
            total = backend.empty(array.shape, array.dtype)
            backend.add(present.array, array, total)
            gradients[c.slot] = _Gradient(total, True)


class Known(NamedTuple):
    """A recorded graph of which all is known but where gradients go; by that its plan is found."""

    version: int
    nodes: list[Node]
    leaves: dict[int, Value]
    plans: dict[tuple[int, ...], Plan]  # of all graphs that were recorded alike
    budget: int | None = _BACKWARD

    def begin(self, root: Value) -> Execution:
        """The execution of the graph, which ends in `root`."""
        places: dict[int, int] = {}
        key = tuple(
            [
                places.setdefault(id(leaf.grad._storage), len(places)) if leaf.need_grad else -1
                for leaf in self.leaves.values()
            ]
        )
        plan = self.plans.get(key)
        if plan is None:
            plan = self.plans[key] = plans.plan(Graph([root]))
        else:
            plans.hits += 1
        return Execution(plan, self.nodes, self.leaves, self.version, self.budget)


class _Bindings(NamedTuple):
    """A program of a forward, and what it works on."""

    program: Callable[..., None]
    leaves: list[Storage]
    data: list[NdArray | None]
    storages: list[Storage | None]
    kept: list[tuple[NdArray, ...]]
    kept_storages: list[Storage]
    unheld: list[tuple[Node, int]]  # outputs of nodes that only gradients read
    site: Site | None
    touched: list[Storage]  # that the program reads or writes


def _gradient_memory(grad: NdArray, shape: Any, backend: Backend) -> Any:
    """Where a leaf's first gradient is written: straight into place, if that is overwritten."""
    storage = grad._storage
    if storage.zeroing and grad._whole() and backend.takes_gradient(storage.dtype):
        array = storage.array
        if array is None:
            array = storage.allocate(storage.dtype, backend)
        if backend.holds(array):
            return grad._view(array)
    return backend.empty(shape, backend.dtype)


def _clear(values: Sequence[Value], reason: str) -> None:
    for value in values:
        data = value.present_data()
        if data is not None:
            data._storage.clear(reason)


class _Gradient:
    """The gradient of an intermediate value while backward runs."""

    __slots__ = ("array", "own")

    def __init__(self, array: Any, own: bool) -> None:
        self.array = array
        self.own = own  # we may write to it


def _seed_gradient(root: Value, seed: Any) -> _Gradient:
    assert root.parent is not None
    setup = root.parent.setup
    dtype = setup.results[root.index].dtype
    if isinstance(seed, int | float) or np.isscalar(seed):
        return _Gradient(setup.backend.full(root.shape, float(seed), dtype), True)  # type: ignore[arg-type]
    array = seed if hasattr(seed, "dtype") else np.asarray(seed)
    return _Gradient(setup.backend.owned(array, dtype), False)


def _add_to_leaf(grad: NdArray, array: Any, first: bool, backend: Backend) -> None:
    storage = grad._storage
    if first and storage.zeroing and grad._whole():
        target = storage.array
        if target is None:
            target = storage.allocate(storage.dtype, backend)
        target = grad._view(target)
        if array is not target and transfer.address(array) != transfer.address(target):
            transfer.copy(target, array)
    else:
        target = storage.materialize()
        if not backend.holds(target) and storage.home is None and not storage.exported:
            storage.place(backend.convert(target, storage.dtype))
            target = storage.array
        target = grad._view(target)
        holder = backend if backend.holds(target) else transfer.backend_of(target)
        holder.add(target, array, target)
    storage.written()


def _give(value: Value, gradient: _Gradient) -> None:
    """Make a gradient visible as `g`; the memory is shared while backward still reads it."""
    grad = value.grad
    if gradient.own and not grad._storage.exported:
        grad._storage.place(gradient.array)
        gradient.own = False
    else:
        transfer.copy(grad._storage.writable(), gradient.array)
