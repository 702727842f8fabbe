"""Execution: a plan bound to one live graph, and how it runs forward and backward.

Arrays belong to the graph (to its values, and to its nodes where gradients read them), never to the
plan: two live graphs of one structure do not disturb each other. Gradients of intermediate values
live only while a backward runs, unless the user asked to keep them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import numpy as np

from .backward_program import backward_program
from .backward_segment import run_backward
from .backward_walk import BackwardWalk
from .capture import Site, shared_site
from .context import compute_recorded, launch_step
from .errors import GraphError
from .forward_bindings import Bindings, bind
from .forward_segment import run_forward
from .gradients import ReadyCallback, add_to_leaf, gradient_memory, seed_gradient
from .graph import Hook, Node, nodes_of
from .hooks import NO_HOOKS, function_hooks
from .memory_budget import current_budget, fitting
from .ndarray import NdArray
from .plan import BackwardStep, Plan, plans
from .recompute import marked
from .rematerialization import sparing
from .step import waiting_calls
from .storage import Storage
from .structure import Graph
from .value import Value, version

if TYPE_CHECKING:
    from .variable import Variable

Hooks = tuple[Hook | None, Hook | None]


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
        self._bindings: dict[tuple[bool, bool], Bindings | bool | None] = {}
        self._grads: list[Any] = []
        self._backward_site: Site | None = None

    def bound(self, key: tuple[bool, ...], steps: Sequence[Any]) -> list[tuple[Any, ...]]:
        """(step, node, values to clear) of each step.

        To hold the values is no cycle: of those that are cleared none leads to the root, which
        alone holds the execution.
        """
        program = self._programs.get(key)
        if program is None:
            program = self._programs[key] = [
                (step, self.nodes[step.node], self.values(step.clears)) for step in steps
            ]
        return program

    def values(self, slots: Sequence[int]) -> list[Value]:
        return [value for value in map(self.value, slots) if value is not None]

    def value(self, slot: int) -> Value | None:
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
        program = self.bound(flags, self.plan.forward(clear_buffer, clear_no_need_grad))
        with np.errstate(all="ignore"):
            for step, node, clears in program:
                for hook in pre:
                    hook(node)
                node.execute(step.inplace)
                for hook in post:
                    hook(node)
                for value in clears:
                    value.clear(reason)

    def _forward_by_program(self, flags: tuple[bool, bool]) -> bool:
        """Run a forward by its program; False where it has none, or is the first of this graph."""
        bindings = self._bindings.get(flags, False)
        if bindings is False:
            self._bindings[flags] = True  # a graph that runs again is worth a program
            return False
        if isinstance(bindings, Bindings):
            for node, index in bindings.unheld:
                if node.live_output(index) is not None:
                    bindings = True
        if bindings is True:
            bindings = self._bindings[flags] = bind(self, flags)
        if not isinstance(bindings, Bindings):
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

    def captured_forward(self, flags: tuple[bool, bool]) -> Bindings | None:
        """What the program of a forward works on, if that is captured."""
        bindings = self._bindings.get(flags)
        if not isinstance(bindings, Bindings) or bindings.site is None:
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
            if isinstance(bindings, Bindings)
            for storage in bindings.touched
        ]
        leaves = [leaf.data._storage for leaf in self.leaves.values()]
        return [*grads, *touched, *leaves], [*grads, *leaves]

    def site(self, what: str) -> Site | None:
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
        BackwardWalk(self, root, seed).run(steps, clear_buffer, callbacks, pre, post)

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
        bound = None if self.nodes[0].eager else self.bound((True,), steps)
        reason = "backward(clear_buffer=True) freed it; set persistent=True to keep it"
        if callbacks:
            coming = [grads[s]._storage for step in steps for s in step.ready]
            for callback in callbacks:
                callback.begin(coming, self.plan)

        def clear(number: int) -> None:
            step = steps[number]
            for value in self.values(step.clears) if bound is None else bound[number][2]:
                value.clear(reason)

        def tell(storage: Storage) -> None:
            for callback in callbacks:
                callback.ready(storage)

        def run(ready: Callable[[Storage], None] | None) -> None:
            gradient = seed_gradient(root, seed)
            # Nobody else holds the array, so that the program can let it go.
            array, own = [gradient.array], gradient.own
            del gradient
            program(self.nodes, grads, array.pop(), own, ready, clear, gradient_memory, add_to_leaf)

        if self._backward_site is None:
            self._backward_site = self.site("backward")
        site = self._backward_site
        with np.errstate(all="ignore"):
            if site is None:
                run(tell if callbacks else None)
            else:
                run_backward(
                    site, self.plan, steps, program, run, self.nodes, grads, seed,
                    tell if callbacks else None, callbacks, clear, gradient_memory, add_to_leaf,
                )  # fmt: skip
        for callback in callbacks:
            callback.finish()


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
