"""Program: the steps of a plan as one straight-line Python function, without a loop over steps.

`execution.py` walks through a plan step by step, which costs more than the arithmetic where arrays
are small. What a step does is known when its plan is made: which results are kept, which memory is
let go, which gradients are added. Here that knowledge becomes text, compiled once for each plan.
What it leaves behind is what the walk leaves behind: storages, kept arrays, gradients.

Not everything is worth text: `forward_program` and `backward_program` return None for plans that
mix backends, or convert between functions, and then the walk is what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np

from .backend import Backend
from .derivative import sum_to_shape
from .evaluation import read_indices, store, taken
from .formula import Formula
from .formula_chain import Joined
from .function import Binding, Kind, Setup, Spec
from .fusion import (
    FusedBackward,
    FusedForward,
    formula_of,
    fused_backward,
    fused_forward,
)
from .memory import owns_memory
from .plan import BackwardStep, Contribution, ForwardStep, Plan

_BYTES = np.dtype(np.uint8)


class _Text:
    """Lines of a function, and the objects that they name."""

    def __init__(self, backend: Backend) -> None:
        self.is_again = False  # what is added computes once more, for backward
        self._lines: list[str] = []
        self.backend = backend
        self._names: dict[str, Any] = {
            "__name__": __name__,  # who looks for the user's line passes over these
            "xp": backend.xp,
            "backend": backend,
            "empty": backend.empty,
            "holds": backend.holds,
            "store": store,
            "taken": taken,
        }

    def add(self, *lines: str) -> None:
        self._lines += lines

    def name(self, prefix: str, value: Any) -> str:
        """A name for an object."""
        name = f"{prefix}{len(self._names)}"
        self._names[name] = value
        return name

    def use(self, **names: Any) -> None:
        self._names.update(names)

    def empty(self, spec: Spec) -> str:
        """Text of a new array."""
        make = self.name("empty", self.backend.allocator(spec.size * spec.dtype.itemsize))
        return f"{make}({self.name('shape', spec.shape)}, {self.name('dtype', spec.dtype)})"

    def formula(self, formula: Formula, node: int, values: Mapping[str, str], out: str) -> None:
        """out[...] = formula of these values and of a node's numbers."""
        arrays = [values[name] for name in formula.arrays]
        numbers = [f"nodes[{node}].operands[{name!r}]" for name in formula.numbers]
        kernel = self.name("formula", formula.kernel)
        self.add(f"{kernel}({', '.join([*arrays, *numbers, out])})")

    def function(self, signature: str) -> Callable[..., Any]:
        source = f"def program({signature}):\n" + "".join(
            f"    {line}\n" for line in self._lines or ["pass"]
        )
        exec(compile(source, "<program of a plan>", "exec"), self._names)
        return self._names["program"]


def _common_backend(plan: Plan) -> Backend | None:
    """The backend of all calls, if no value is converted between two of them."""
    backend = plan.calls[0].setup.backend
    for call in plan.calls:
        if call.setup.backend is not backend:
            return None
        for position, slot in enumerate(call.sources):
            if slot >= 0 and slot not in plan.leaves:
                producer = plan.calls[plan.producer[slot]]
                made = producer.setup.results[slot - producer.targets[0]].dtype
                if position in call.setup.index_names or made != call.setup.dtypes[position]:
                    return None
    return backend


# -- forward ---------------------------------------------------------------------------------------


def forward_program(
    plan: Plan, clear_buffer: bool, clear_no_need_grad: bool
) -> Callable[..., None] | None:
    """`program(nodes, data, storages, kept)`: a forward with these flags.

    Args of the program:
        nodes: of the graph, as the plan numbers them.
        data: the NdArrays of leaves, and of results that share memory with others, by slot.
        storages: of the results that stay, by slot; and of what `kept` holds besides, after them.
        kept: what each node keeps for its gradients.
    """
    backend = _common_backend(plan)
    if backend is None:
        return None
    text = _Text(backend)
    steps = plan.forward(clear_buffer, clear_no_need_grad)
    gone = {slot for step in steps for slot in step.clears}
    extra = plan.n_slots
    for step in fused_forward(plan, steps, gone):
        members = (step,) if isinstance(step, ForwardStep) else step.steps
        function = step if isinstance(step, ForwardStep) else step.function
        saved: list[int] = []
        if function is not None:
            call = plan.calls[function.node]
            first_saved = len(call.sources) + len(call.targets)
            saved = [p for p in plan.kept[function.node] if p >= first_saved]
        _compute(text, plan, step, gone, extra, saved)
        extra += len(saved)
        if isinstance(step, FusedForward):
            text.add(*[f"storages[{slot}].written()" for slot in step.outputs if slot not in gone])
        for member in members:
            if plan.keeps(member.node):
                text.add(f"nodes[{member.node}].keep(kept[{member.node}])")
        clears = [slot for member in members for slot in member.clears]
        text.add(*[f"v{slot} = None" for slot in clears if slot not in plan.leaves])
    return text.function("nodes, data, storages, kept")


def _compute(
    text: _Text,
    plan: Plan,
    step: ForwardStep | FusedForward,
    gone: Container[int],
    extra: int,
    saved: Sequence[int],
) -> None:
    """A function, a chain, or both as one."""
    if isinstance(step, ForwardStep):
        _forward_step(text, plan, step, "", gone, extra, saved)
        return
    joined = _forward_chain(text, plan, step, gone)
    if step.function is not None:
        _forward_step(text, plan, step.function, joined, gone, extra, saved)


def _forward_chain(text: _Text, plan: Plan, fused: FusedForward, gone: Container[int]) -> str:
    """Compute a chain; or return what its function is given to compute it."""
    inputs = [_input(text, plan, node, i, f"z{n}") for n, (node, i) in enumerate(fused.inputs)]
    spec = plan.calls[fused.steps[0].node].setup.results[0]
    for slot in fused.outputs:
        if slot in gone:
            inplace = fused.inplace
            text.add(f"v{slot} = {text.empty(spec) if inplace is None else f'v{inplace}'}")
            continue
        _existing(text, f"v{slot}", f"storages[{slot}]", spec)
    outs = [f"v{slot}" for slot in fused.outputs]
    return _chain(text, fused, spec.size, inputs, outs)


def _chain(
    text: _Text,
    fused: FusedForward | FusedBackward,
    size: int,
    inputs: Sequence[str],
    outs: Sequence[str],
) -> str:
    """Compute a chain of `size` elements; or return what its function is given to compute it."""
    values = [f"nodes[{n.node}].operands[{n.operand!r}]" for n in fused.numbers]
    if fused.function is None and text.backend.runs_as_text(size):
        kernel = text.name("chain", fused.chain.kernel)
        text.add(f"{kernel}({', '.join([*outs, *inputs, *values])})")
        return ""
    lists = (f"[{', '.join(items)}]" for items in (inputs, values, outs))
    arguments = ", ".join([text.name("chain", fused.chain), *lists])
    if fused.function is None:
        text.add(f"xp.evaluate_chain({arguments})")
        return ""
    text.use(Joined=Joined)
    return f"joined=Joined({arguments})"


def _forward_step(
    text: _Text,
    plan: Plan,
    step: ForwardStep,
    joined: str,
    gone: Container[int],
    extra: int,
    saved: Sequence[int],
) -> None:
    """One function; `joined` is what it is given to compute in place of its first result."""
    k, inplace = step.node, step.inplace
    call = plan.calls[k]
    setup = call.setup
    if setup.function.alias:
        _forward_alias(text, plan, k, gone)
        return
    targets: list[int | None] = [*call.targets]
    inputs = [_input(text, plan, k, p, f"x{p}") for p in range(len(call.sources))]
    places: list[str | None] = []  # where the storage of each result is; None for a new array
    for i in range(len(setup.results)):
        if i == 0 and joined:
            places.append(None)
        elif i < len(targets):
            places.append(None if targets[i] in gone else f"storages[{targets[i]}]")
        else:
            position = len(call.sources) + i
            found = position in saved
            places.append(f"storages[{extra + saved.index(position)}]" if found else None)
    outs = [f"o{i}" for i in range(len(setup.results))]
    if joined:
        outs[0], targets[0] = "None", None
    takes_out = setup.declaration.takes_out
    if takes_out:
        for out, place, spec in zip(outs, places, setup.results, strict=True):
            if out == "None":
                continue
            if place is not None:
                _existing(text, out, place, spec)
            else:
                text.add(f"{out} = {text.empty(spec) if inplace is None else inputs[inplace]}")
    formula = formula_of(setup)
    if formula is not None and text.backend.runs_as_text(setup.results[0].size):
        text.formula(formula, k, dict(zip(setup.declaration.inputs, inputs, strict=True)), "o0")
        if places[0] is not None:
            text.add(f"{places[0]}.written()")
    else:
        _forward_call(text, k, setup, joined, inputs, outs, places)
    if text.is_again:
        saved_slots = [plan.saved_slots.get((k, len(call.sources) + i)) for i in range(len(outs))]
        targets += saved_slots[len(targets) :]
    for target, out in zip(targets, outs, strict=False):
        if target is not None:
            text.add(f"v{target} = {out}")
    text.add(" = ".join([*(n for n in (*outs, *inputs) if n[0] in "ox"), "None"]))


def _forward_alias(text: _Text, plan: Plan, k: int, gone: Container[int]) -> None:
    """A function whose result is its input's memory."""
    call = plan.calls[k]
    spec, (target,), source = call.setup.results[0], call.targets, call.sources[0]
    if text.is_again or (target in gone and source not in plan.leaves):
        source_text = _input(text, plan, k, 0, "x")
        text.add(f"v{target} = {source_text}.reshape({text.name('shape', spec.shape)})")
    else:
        dtype = text.name("dtype", spec.dtype)
        text.add(f"nodes[{k}].execute()", f"v{target} = data[{target}].read({dtype}, backend)")


def _forward_call(
    text: _Text,
    k: int,
    setup: Setup,
    joined: str,
    inputs: Sequence[str],
    outs: Sequence[str],
    places: Sequence[str | None],
) -> None:
    """Call the function's forward, and see to it that its results are where they belong."""
    options = _options(text, k, setup)
    takes_out = setup.declaration.takes_out
    if joined:
        options.append(joined)
    if takes_out and (len(outs) > 1 or not joined):
        options.append(f"out={outs[0]}" if len(outs) == 1 else f"out=({', '.join(outs)})")
    method = "forward_joined" if joined else "forward"
    forward = text.name(method, getattr(setup.implementation, method))
    text.add(f"r = {forward}({', '.join(['xp', *inputs, *options])})")
    several = len(outs) + len(setup.declaration.updates) > 1
    arrays = f"[{', '.join(inputs)}]"
    for i, (out, place, spec) in enumerate(zip(outs, places, setup.results, strict=True)):
        if out == "None":
            continue
        result = f"r[{i}]" if several else "r"
        if place is None:
            stored = [f"{out} = taken({result}, {text.name('spec', spec)}, {arrays}, backend)"]
        else:
            stored = [f"store({place}, {result}, {arrays}, backend)", f"{out} = {place}.array"]
        if takes_out:
            text.add(f"if {result} is not {out}:", *[f"    {line}" for line in stored])
            if place is not None:
                text.add("else:", f"    {place}.written()")
        else:
            text.add(*stored)
    if setup.declaration.updates and not text.is_again:
        text.add(f"nodes[{k}].commit(r[{len(outs)}:])")
    text.add("r = None")


def _existing(text: _Text, out: str, place: str, spec: Spec) -> None:
    """Let `out` be the memory of a storage."""
    text.add(
        f"{out} = {place}.array",
        f"if {out} is None or not holds({out}):",
        f"    {out} = {place}.allocate({text.name('dtype', spec.dtype)}, backend)",
    )


def _input(text: _Text, plan: Plan, k: int, position: int, name: str) -> str:
    """What a call reads at a position; a leaf is read and called `name`."""
    setup, slot = plan.calls[k].setup, plan.calls[k].sources[position]
    if slot < 0:
        return "None"
    if text.is_again and slot not in plan.forgotten:
        return f"i{k}[{position}]"
    if slot not in plan.leaves:
        return f"v{slot}"
    if position in setup.index_names:
        text.use(read_indices=read_indices)
        words = f"{setup.function.name!r}, {setup.index_names[position]!r}"
        text.add(f"{name} = read_indices(data[{slot}], backend, {words})")
    else:
        dtype = text.name("dtype", setup.dtypes[position])
        text.add(f"{name} = data[{slot}].read({dtype}, backend)")
    return name


def _again(text: _Text, plan: Plan, steps: Sequence[ForwardStep]) -> None:
    """Compute once more what was forgotten, into local names."""
    text.is_again = True
    everything = range(plan.n_slots)
    gone = {slot for step in steps for slot in step.clears}
    for step in fused_forward(plan, steps, gone):
        members = (step,) if isinstance(step, ForwardStep) else step.steps
        for member in members:
            text.add(f"i{member.node} = nodes[{member.node}].kept_inputs()")
        _compute(text, plan, step, everything, 0, ())
        clears = {slot for member in members for slot in member.clears}
        for name in [*(f"v{slot}" for slot in sorted(clears)), *(f"i{m.node}" for m in members)]:
            text.add(f"{name} = None")
    text.is_again = False


def _options(text: _Text, k: int, setup: Setup) -> list[str]:
    options = []
    if setup.declaration.operands:
        options.append(f"**nodes[{k}].operands")
    if setup.function.random:
        options.append(f"random=nodes[{k}].{'same_random' if text.is_again else 'random'}()")
    if setup.scratch:
        options.append(f"scratch={text.empty(Spec((setup.scratch,), _BYTES))}")
    return options


# -- backward --------------------------------------------------------------------------------------


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
    backend = _common_backend(plan)
    kept = plan.persistent | plan.wanted
    if backend is None or not steps or any(not kept.isdisjoint(s.targets) for s in steps):
        return None
    text = _Text(backend)
    text.use(owns_memory=owns_memory, sum_to_shape=sum_to_shape, packed=backend.packed)
    root = plan.roots[0]
    text.add(f"g{root} = seed", f"w{root} = own", "seed = None")
    added = {root}
    number = 0
    for step in fused_backward(plan, steps):
        members = (step,) if isinstance(step, BackwardStep) else step.steps
        for member in members:
            _again(text, plan, member.again)
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
    text: _Text,
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


def _settle(text: _Text, slot: int, spec: Spec) -> None:
    """Give a gradient the dtype of the result: bfloat16 times a number is float32 to NumPy."""
    if slot >= 0 and spec.dtype.kind != "f":
        text.add(f"g{slot} = backend.owned(g{slot}, {text.name('dtype', spec.dtype)})")


def _gradient(text: _Text, c: Contribution, spec: Spec) -> str:
    """Text of the memory of a gradient: its place, if it is the first to get there."""
    if c.leaf and c.first:
        return f"memory(grads[{c.slot}], {text.name('shape', spec.shape)}, backend)"
    return text.empty(spec)


def _fast_backward(
    text: _Text,
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


def _backward_formulas(text: _Text, step: BackwardStep, setup: Setup, outer: Sequence[str]) -> bool:
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


def _backward_rules(text: _Text, step: BackwardStep, setup: Setup, outer: Sequence[str]) -> str:
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


def _deliver(text: _Text, c: Contribution, out: str, own: str, added: set[int]) -> None:
    """Write or add a gradient; `own` says whether nobody else refers to it."""
    if c.leaf:
        text.add(f"add_to_leaf(grads[{c.slot}], {out}, {c.first}, backend)")
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


def _backward_chain(text: _Text, plan: Plan, fused: FusedBackward, added: set[int]) -> None:
    spec = plan.calls[fused.steps[0].node].setup.results[0]
    reading = {read.node for read in fused.inputs if read.slot < 0}
    for step in fused.steps:
        if step.node in reading:
            text.add(f"a{step.node} = {_kept_arrays(plan, step)}")
    for read in fused.inputs:
        _settle(text, read.slot, spec)
    gradient = "g{}" if fused.function is None else "packed(g{})"
    inputs = [
        gradient.format(read.slot) if read.slot >= 0 else f"a{read.node}[{read.position}]"
        for read in fused.inputs
    ]
    outputs = []
    for i, (number, place) in enumerate(fused.outputs):
        c = fused.steps[number].contributions[place]
        text.add(f"c{i} = {_gradient(text, c, spec)}")
        outputs.append((c, f"c{i}"))
    outs = [out for _, out in outputs]
    joined = _chain(text, fused, spec.size, inputs, outs)
    if fused.function is None:
        for c, out in outputs:
            _deliver(text, c, out, "True", added)
    else:
        _backward_step(text, plan, fused.function, added, joined, outputs)
    arrays = {f"a{read.node}" for read in fused.inputs if read.slot < 0}
    gone = {f"g{read.slot}" for read in fused.inputs if read.slot >= 0}
    text.add(" = ".join([*sorted(gone | arrays), *outs, "None"]))


def _kept_arrays(plan: Plan, step: BackwardStep) -> str:
    """What a call's gradients read, by position."""
    positions = plan.calls[step.node].setup.reads(step.need).backward
    forgotten = plan.forgotten_positions(step.node)
    again = "".join(f", {p}: v{forgotten[p]}" for p in positions if p in forgotten)
    kept = f"nodes[{step.node}].kept_arrays()"
    return f"{{**{kept}{again}}}" if again else kept


def _bound(text: _Text, binding: Binding, k: int, outer: Sequence[str]) -> str:
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
