"""Backward programs: the gradients of a plan's steps as one function; see forward_program.py."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import numpy as np

from .derivative import sum_to_shape
from .forward_program import compute_again
from .function import Binding, Kind, Setup, Spec
from .fusion import (
    FusedBackward,
    formula_of,
    fused_backward,
    separately,
)
from .memory import owns_memory
from .plan import BackwardStep, Contribution, Plan
from .program_text import Text, add_chain, common_backend

_BYTES = np.dtype(np.uint8)


def backward_program(plan: Plan) -> Callable[..., None] | None:
    """`program(nodes, grads, seed, own, ready, clear, memory, add_to_leaf)`: it clears as it goes.

    Args of the program:
        nodes: of the graph, as the plan numbers them.
        grads: the gradients of leaves, as NdArrays, by slot.
        seed, own: the gradient of the root, and whether it may be written to.
        ready: called with each leaf gradient that is complete; None where nobody asks.
        clear: called with the number of each step whose values are let go.
        memory, add_to_leaf: of execution.py.
    """
    steps = plan.backward(True)
    backend = common_backend(plan)
    kept = plan.persistent | plan.wanted
    if backend is None or not steps or any(not kept.isdisjoint(s.targets) for s in steps):
        return None
    text = Text(backend)
    text.use(owns_memory=owns_memory, sum_to_shape=sum_to_shape, packed=backend.packed)
    root = plan.roots[0]
    text.add(f"g{root} = seed", f"w{root} = own", "seed = None")
    added = {root}
    number = 0
    for step in fused_backward(plan, steps):
        members = (step,) if isinstance(step, BackwardStep) else step.steps
        for member in members:
            compute_again(text, plan, separately(step, member))
        if isinstance(step, FusedBackward):
            _backward_chain(text, plan, step, added)
        else:
            _backward_step(text, plan, step, added)
        text.add(*[f"v{slot} = None" for member in members for slot in member.drops])
        for member in members:
            text.add(f"nodes[{member.node}].release()")
            if member.clears:
                text.add(f"clear({number})")
            number += 1
        for slot in (slot for member in members for slot in member.ready):
            text.add("if ready is not None:", f"    ready(grads[{slot}]._storage)")
    return text.function("nodes, grads, seed, own, ready, clear, memory, add_to_leaf")


def _backward_step(
    text: Text,
    plan: Plan,
    step: BackwardStep,
    added: set[int],
    joined: str = "",
    further: Sequence[tuple[Contribution, str]] = (),
) -> None:
    """One function.

    Args:
        joined: what it is given to compute the gradient of its first result itself.
        further: what else it computes then, and where that is.
    """
    call = plan.calls[step.node]
    targets = step.targets
    setup = call.setup
    reads = setup.reads(step.need)
    text.add(f"a = {_kept_arrays(plan, step)}")
    for slot, spec in zip(targets[bool(joined) :], setup.results[bool(joined) :], strict=False):
        _settle(text, slot, spec)
    outer = [f"g{slot}" if slot >= 0 else "None" for slot in targets]
    own = "True"
    if reads.fast:
        outer = [f"packed({g})" if g != "None" else g for g in outer]
        _fast_backward(text, plan, step, ["None", *outer[1:]] if joined else outer, joined)
    elif not _backward_formulas(text, step, setup, outer):
        own = _backward_rules(text, step, setup, outer)
    for c, out in further:
        _deliver(text, c, out, "True", added)
    for c in step.contributions:
        out = f"o{c.source}"
        _deliver(text, c, out, own.format(out), added)
    gone = [f"g{slot}" for slot in targets if slot >= 0]
    text.add(" = ".join([*gone, *{f"o{c.source}" for c in step.contributions}, "a", "None"]))


def _settle(text: Text, slot: int, spec: Spec) -> None:
    """Give a gradient the dtype of the result: bfloat16 times a number is float32 to NumPy."""
    if slot >= 0 and spec.dtype.kind != "f":
        text.add(f"g{slot} = backend.owned(g{slot}, {text.name('dtype', spec.dtype)})")


def _gradient(text: Text, c: Contribution, spec: Spec) -> str:
    """Text of the memory of a gradient: its place, if it is the first to get there."""
    if c.leaf and c.first:
        return f"memory(grads[{c.slot}], {text.name('shape', spec.shape)}, backend)"
    return text.empty(spec)


def _fast_backward(
    text: Text,
    plan: Plan,
    step: BackwardStep,
    outer: Sequence[str],
    joined: str,
) -> None:
    """All gradients by the function's own backward."""
    setup = plan.calls[step.node].setup
    reads = setup.reads(step.need)
    outs = ["None"] * len(setup.input_shapes)
    for c in step.contributions:
        outs[c.source] = f"o{c.source}"
        spec = Spec(setup.input_shapes[c.source] or (), setup.backend.dtype)
        text.add(f"o{c.source} = {_gradient(text, c, spec)}")
    options = [_bound(text, b, step.node, outer) for b in reads.fast_bindings]
    if setup.scratch:
        options.append(f"scratch={text.empty(Spec((setup.scratch,), _BYTES))}")
    options.append(f"out={text.name('inputs', setup.declaration.per_input)}(({', '.join(outs)},))")
    options += [joined] if joined else []
    method = "backward_joined" if joined else "backward"
    backward = text.name(method, getattr(setup.implementation, method))
    text.add(f"{backward}(xp, {text.name('need', reads.need)}, {', '.join(options)})")


def _backward_formulas(text: Text, step: BackwardStep, setup: Setup, outer: Sequence[str]) -> bool:
    """The gradients as formulas, each at once; False where not all are formulas of small arrays."""
    found = []
    for c, (_, rule, bindings) in zip(
        step.contributions, setup.reads(step.need).by_rules, strict=True
    ):
        if rule.formula is None or formula_of(setup) is None:
            return False
        values, shapes = {}, []
        for b in bindings:
            if b.kind is Kind.ARRAY:
                values[b.name] = f"a[{b.key}]"
                shapes.append((*setup.input_shapes, *(r.shape for r in setup.results))[b.key])
            elif b.kind is Kind.OUTER:
                values[b.name] = outer[b.key]
                shapes.append(setup.results[b.key].shape)
        spec = Spec(np.broadcast_shapes(*shapes), setup.backend.dtype)
        if not text.backend.runs_as_text(spec.size):
            return False
        found.append((c, rule.formula, values, spec))
    for c, formula, values, spec in found:
        out, shape = f"o{c.source}", setup.input_shapes[c.source]
        fits = spec.shape == shape
        text.add(f"{out} = {_gradient(text, c, spec) if fits else text.empty(spec)}")
        text.formula(formula, step.node, values, out)
        if not fits:
            text.add(f"{out} = sum_to_shape(xp, {out}, {text.name('shape', shape)})")
    return True


def _backward_rules(text: Text, step: BackwardStep, setup: Setup, outer: Sequence[str]) -> str:
    """The gradients by the rules; returns text of whether nobody else refers to one."""
    outer = list(outer)
    for i, slot in enumerate(step.targets):
        if slot < 0:
            shape = text.name("shape", setup.results[i].shape)
            kind = text.name("dtype", setup.results[i].dtype)
            outer[i] = f"e{i}"
            text.add(f"e{i} = backend.full({shape}, 0, {kind})")
    function = text.name("function", setup.function)
    for index, rule, bindings in setup.reads(step.need).by_rules:
        compute = text.name("compute", rule.compute)
        options = [_bound(text, b, step.node, outer) for b in bindings]
        shape = text.name("shape", setup.input_shapes[index])
        text.add(
            f"o{index} = {compute}({function}, xp, {', '.join(options)})",
            f"if o{index}.shape != {shape}:",
            f"    o{index} = sum_to_shape(xp, o{index}, {shape})",
        )
    others = ", ".join([*outer, "*a.values()"])
    return f"owns_memory({{0}}) and id({{0}}) not in map(id, ({others}))"


def _deliver(text: Text, c: Contribution, out: str, own: str, added: set[int]) -> None:
    """Write or add a gradient; `own` says whether nobody else refers to it."""
    if c.leaf and c.first:
        text.add(
            f"s = grads[{c.slot}]._storage",
            f"if s.zeroing and s.array is {out}:",  # it was written where it belongs
            "    s.written()",
            "else:",
            f"    add_to_leaf(grads[{c.slot}], {out}, True, backend)",
        )
    elif c.leaf:
        text.add(f"add_to_leaf(grads[{c.slot}], {out}, False, backend)")
    elif c.slot not in added:
        text.add(f"w{c.slot} = {own}", f"g{c.slot} = {out}")
        added.add(c.slot)
    else:
        text.add(
            f"if w{c.slot}:",
            f"    backend.add(g{c.slot}, {out}, g{c.slot})",
            "else:",
            f"    t = empty({out}.shape, {out}.dtype)",
            f"    backend.add(g{c.slot}, {out}, t)",
            f"    g{c.slot} = t",
            f"    w{c.slot} = True",
            "    t = None",
        )


def _backward_chain(text: Text, plan: Plan, fused: FusedBackward, added: set[int]) -> None:
    spec = plan.calls[fused.steps[0].node].setup.results[0]
    reading = {read.node for read in fused.inputs if read.slot < 0 and not read.again}
    again = {f"i{read.node}": read.node for read in fused.inputs if read.again}
    computed = {plan.calls[made.node].targets[0] for made in fused.again}
    for step in fused.steps:
        if step.node in reading:
            text.add(f"a{step.node} = {_kept_arrays(plan, step, computed)}")
    text.add(*[f"{name} = nodes[{node}].kept_inputs()" for name, node in again.items()])
    for read in fused.inputs:
        _settle(text, read.slot, spec)
    gradient = "g{}" if fused.function is None else "packed(g{})"
    inputs = [
        gradient.format(read.slot)
        if read.slot >= 0
        else f"{'i' if read.again else 'a'}{read.node}[{read.position}]"
        for read in fused.inputs
    ]
    outputs = []
    for i, (number, place) in enumerate(fused.outputs):
        c = fused.steps[number].contributions[place]
        text.add(f"c{i} = {_gradient(text, c, spec)}")
        outputs.append((c, f"c{i}"))
    outs = [out for _, out in outputs]
    joined = add_chain(text, fused, spec.size, inputs, outs)
    if fused.function is None:
        for c, out in outputs:
            _deliver(text, c, out, "True", added)
    else:
        _backward_step(text, plan, fused.function, added, joined, outputs)
    arrays = {f"a{node}" for node in reading}.union(again)
    gone = {f"g{read.slot}" for read in fused.inputs if read.slot >= 0}
    text.add(" = ".join([*sorted(gone | arrays), *outs, "None"]))


def _kept_arrays(plan: Plan, step: BackwardStep, computed: Container[int] = ()) -> str:
    """What a call's gradients read, by position, but for slots that are computed in the chain."""
    positions = plan.calls[step.node].setup.reads(step.need).backward
    forgotten = plan.forgotten_positions(step.node)
    again = "".join(
        f", {p}: v{forgotten[p]}"
        for p in positions
        if p in forgotten and forgotten[p] not in computed
    )
    kept = f"nodes[{step.node}].kept_arrays()"
    return f"{{**{kept}{again}}}" if again else kept


def _bound(text: Text, binding: Binding, k: int, outer: Sequence[str]) -> str:
    """`name=what it stands for`."""
    name, kind, key = binding
    if kind is Kind.ARRAY:
        value = f"a[{key}]"
    elif kind is Kind.OUTER:
        value = outer[key]
    elif kind is Kind.OPERAND:
        value = f"nodes[{k}].operands[{name!r}]"
    elif kind is Kind.ARRAYS:
        value = f"tuple(map(a.get, range({key})))"
    else:
        value = text.name("constant", key)
    return f"{name}={value}"
