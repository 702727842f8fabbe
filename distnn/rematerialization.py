"""Rematerialization: results of formulas that are not kept, since their gradients' pass makes them.

A chain of gradients reads its arrays once, so a result that can be computed from others of them
costs arithmetic there, but no memory and no pass of its own. Such a call forgets its result, as one
that is marked for recompute does (recompute.py); fusion.py puts it into the chain.

Read again is only what is kept anyway, is no leaf and is held by nobody: what a user writes to
between forward and backward changes no more gradients than it would have.

Jain et al., "Checkmate: breaking the memory wall with optimal tensor rematerialization",
arXiv:1910.02653, chooses among all results, by cost.
"""

from __future__ import annotations

from collections.abc import Collection

from .function import Spec
from .fusion import formula_of, fused_backward, rules_of
from .plan import BackwardStep, Plan

# Calls that a pass computes again: each takes registers.
_MOST_CALLS = 8


def sparing(plan: Plan, held: Collection[int]) -> Plan:
    """The plan, or one that forgets such results, too.

    Args:
        held: slots of results that somebody holds.
    """
    key = ("sparing", frozenset(held))
    if key not in plan.fits:
        calls = spared(plan, held)
        plan.fits[key] = plan.forgetting(calls) if calls else plan
    return plan.fits[key]


def spared(plan: Plan, held: Collection[int]) -> frozenset[int]:
    """The calls of a plan that forget their results."""
    return _Search(plan, held).run()


class _Search:
    def __init__(self, plan: Plan, held: Collection[int]) -> None:
        self._plan = plan
        self._held = plan.persistent.union(held)
        self._passes: dict[int, int] = {}  # call -> number of the pass that has its gradient
        self._specs: dict[int, Spec] = {}  # of what a pass computes
        self._readers: dict[int, set[int]] = {}  # kept slot -> calls that keep it
        self._chosen: dict[int, int] = {}  # call -> pass

    def run(self) -> frozenset[int]:
        plan = self._plan
        if plan.forgotten or not any(self._may(k) for k in range(len(plan.calls))):
            return frozenset()  # who marks results chooses himself
        for number, step in enumerate(fused_backward(plan, plan.backward(True))):
            members = (step,) if isinstance(step, BackwardStep) else step.steps
            function = None if isinstance(step, BackwardStep) else step.function
            for member in members:
                if member is not function and rules_of(plan, member) is not None:
                    self._passes[member.node] = number
                    self._specs[number] = plan.calls[member.node].setup.results[0]
        for k in range(len(plan.calls)):
            for slot in plan.kept_slots(k):
                self._readers.setdefault(slot, set()).add(k)
        for k, call in enumerate(plan.calls):
            readers = self._readers.get(call.targets[0], set())
            passes = {self._passes.get(reader, -1) for reader in readers}
            if len(passes) == 1 and -1 not in passes:
                number = passes.pop()
                found = self._computed(k, number)
                chosen = sum(place == number for place in self._chosen.values())
                if found and chosen + len(found) <= _MOST_CALLS:
                    self._chosen.update(dict.fromkeys(found, number))
        return frozenset(self._chosen)

    def _may(self, k: int) -> bool:
        """Whether a call can be part of a chain of gradients, and is worth it."""
        plan, call = self._plan, self._plan.calls[k]
        setup, slot = call.setup, call.targets[0]
        formula = formula_of(setup)
        spec = setup.results[0]
        return (
            formula is not None
            and setup.backend.chains_formulas
            and setup.backend.recomputes(formula, spec.size)
            and all(shape == spec.shape for shape in setup.input_shapes)
            and setup.function.can_recompute()
            and slot not in self._held
            and not plan.outlives(slot)
        )

    def _computed(self, k: int, number: int) -> set[int] | None:
        """The calls that give a call's result within a pass; None where it cannot be had there."""
        if not self._may(k) or self._plan.calls[k].setup.results[0] != self._specs[number]:
            return None
        calls = {k}
        for slot in self._plan.calls[k].sources:
            if slot in self._plan.leaves:
                return None
            producer = self._plan.producer[slot]
            if producer in self._chosen:
                if self._chosen[producer] != number:
                    return None
            elif slot in self._held:
                return None
            elif slot not in self._readers:
                further = self._computed(producer, number)
                if further is None:
                    return None
                calls |= further
        return calls
