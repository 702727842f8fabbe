"""Backward step by step: of graphs that run once, with hooks, and where nothing is cleared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import Backend
from .derivative import bind, gradients_by_rules
from .gradients import Gradient, ReadyCallback, add_to_leaf, give, gradient_memory, seed_gradient
from .graph import Hook, Node
from .memory import owns_memory
from .ndarray import NdArray
from .plan import BackwardStep, Contribution
from .recompute import compute_again, forgotten
from .value import Value

if TYPE_CHECKING:
    from .execution import Execution


class BackwardWalk:
    """One backward, and the gradients of intermediate values that it holds meanwhile, by slot."""

    def __init__(self, execution: Execution, root: Value, seed: Any) -> None:
        plan = execution.plan
        self._execution = execution
        self._leaves = execution.leaves
        self._root = plan.roots[0]
        self._gradients: list[Gradient | None] = [None] * plan.n_slots
        self._gradients[self._root] = seed_gradient(root, seed)

    def run(
        self,
        steps: Sequence[BackwardStep],
        clear_buffer: bool,
        callbacks: Sequence[ReadyCallback],
        pre: Sequence[Hook],
        post: Sequence[Hook],
    ) -> None:
        execution, plan = self._execution, self._execution.plan
        again: dict[int, NdArray] = {}  # what is computed again, by slot
        kept = None if not clear_buffer else plan.persistent | plan.wanted
        reason = "backward(clear_buffer=True) freed it; set persistent=True to keep it"
        if callbacks:
            coming = [self._leaves[s].grad._storage for step in steps for s in step.ready]
            for callback in callbacks:
                callback.begin(coming, plan)
        with np.errstate(all="ignore"):
            for step, node, clears in execution.bound((clear_buffer,), steps):
                for hook in pre:
                    hook(node)
                outer = [self._outer(node, i, s) for i, s in enumerate(step.targets)]
                if kept is None or not kept.isdisjoint(step.targets):
                    self._keep_gradients(step, kept)
                for slot in step.targets:
                    if slot >= 0:
                        self._gradients[slot] = None
                for made in step.again:
                    compute_again(plan, execution.nodes, made, again)
                found = forgotten(plan, step.node, again)
                self._run(step, node, outer, found)
                for slot in step.drops:
                    del again[slot]
                del outer, found
                if clear_buffer:
                    node.release()
                    for value in clears:
                        value.clear(reason)
                for hook in post:
                    hook(node)
                for slot in step.ready:
                    for callback in callbacks:
                        callback.ready(self._leaves[slot].grad._storage)
            for slot in plan.wanted:
                gradient = self._gradients[slot]
                value = execution.value(slot)
                if gradient is not None and value is not None:
                    give(value, gradient)
            for callback in callbacks:
                callback.finish()

    def _outer(self, node: Node, index: int, slot: int) -> Any:
        """The gradient that comes in for an output of `node`; None if there is none."""
        gradient = None if slot < 0 else self._gradients[slot]
        if gradient is None:
            return None
        setup = node.setup
        array = setup.backend.owned(gradient.array, setup.results[index].dtype)
        if array is not gradient.array:  # it comes from a function of another context
            gradient.array, gradient.own = array, True
        return array

    def _keep_gradients(self, step: BackwardStep, kept: frozenset[int] | None) -> None:
        """Give intermediate values their gradient, now complete, where users may read it."""
        for slot in step.targets:
            gradient = None if slot < 0 else self._gradients[slot]
            if gradient is None or slot == self._root or (kept is not None and slot not in kept):
                continue
            value = self._execution.value(slot)
            if value is not None:
                give(value, gradient)

    def _run(
        self, step: BackwardStep, node: Node, outer: list[Any], again: dict[int, NdArray]
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
                    outs[c.source] = gradient_memory(self._leaves[c.slot].grad, shape, backend)
                else:
                    outs[c.source] = backend.empty(shape, backend.dtype)  # type: ignore[arg-type]
            if setup.scratch:
                options["scratch"] = backend.empty((setup.scratch,), np.dtype(np.uint8))
            setup.implementation.backward(
                backend.xp, reads.need, **options, out=setup.declaration.per_input(outs)
            )
            for c in step.contributions:
                self._deliver(c, outs[c.source], True, backend)
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
            self._deliver(c, gradient, own, backend)

    def _deliver(self, c: Contribution, array: Any, own: bool, backend: Backend) -> None:
        """Write or add a contribution; `own` says that nobody else refers to `array`."""
        if c.leaf:
            add_to_leaf(self._leaves[c.slot].grad, array, c.first, backend)
            return
        present = self._gradients[c.slot]
        if present is None:
            self._gradients[c.slot] = Gradient(array, own)
        elif present.own and backend.holds(present.array):
            backend.add(present.array, array, present.array)
        else:
            total = backend.empty(array.shape, array.dtype)
            backend.add(present.array, array, total)
            self._gradients[c.slot] = Gradient(total, True)
