"""Forward programs: the steps of a plan as one straight-line Python function, without a loop.

`execution.py` walks through a plan step by step, which costs more than the arithmetic where arrays
are small. What a step does is known when its plan is made: which results are kept, which memory is
let go. Here that knowledge becomes text, compiled once for each plan. What it leaves behind is what
the walk leaves behind: storages, kept arrays.

Not everything is worth text: `forward_program` and `backward_program` return None for plans that
mix backends, or convert between functions, and then the walk is what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import numpy as np

from .evaluation import read_indices
from .function import Setup, Spec
from .fusion import (
    FusedForward,
    formula_of,
    fused_forward,
)
from .plan import ForwardStep, Plan
from .program_text import Text, add_chain, common_backend

_BYTES = np.dtype(np.uint8)


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
    backend = common_backend(plan)
    if backend is None:
        return None
    text = Text(backend)
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
    text: Text,
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
        _forward_step(text, plan, step.function, joined, gone, extra, saved, step.makes_input)


def _forward_chain(text: Text, plan: Plan, fused: FusedForward, gone: Container[int]) -> str:
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
    return add_chain(text, fused, spec.size, inputs, outs)


def _forward_step(
    text: Text,
    plan: Plan,
    step: ForwardStep,
    joined: str,
    gone: Container[int],
    extra: int,
    saved: Sequence[int],
    makes_input: bool = False,
) -> None:
    """One function; `joined` is what it is given to compute in place of its first result.

    With `makes_input` that is in place of its first input.
    """
    k, inplace = step.node, step.inplace
    call = plan.calls[k]
    setup = call.setup
    if setup.function.alias:
        _forward_alias(text, plan, k, gone)
        return
    targets: list[int | None] = [*call.targets]
    inputs = ["None"] * makes_input
    inputs += [_input(text, plan, k, p, f"x{p}") for p in range(len(inputs), len(call.sources))]
    replaced = bool(joined) and not makes_input
    places: list[str | None] = []  # where the storage of each result is; None for a new array
    for i in range(len(setup.results)):
        if i == 0 and replaced:
            places.append(None)
        elif i < len(targets):
            places.append(None if targets[i] in gone else f"storages[{targets[i]}]")
        else:
            position = len(call.sources) + i
            found = position in saved
            places.append(f"storages[{extra + saved.index(position)}]" if found else None)
    outs = [f"o{i}" for i in range(len(setup.results))]
    if replaced:
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
        _forward_call(text, k, setup, joined, inputs, outs, places, makes_input)
    if text.is_again:
        saved_slots = [plan.saved_slots.get((k, len(call.sources) + i)) for i in range(len(outs))]
        targets += saved_slots[len(targets) :]
    for target, out in zip(targets, outs, strict=False):
        if target is not None:
            text.add(f"v{target} = {out}")
    text.add(" = ".join([*(n for n in (*outs, *inputs) if n[0] in "ox"), "None"]))


def _forward_alias(text: Text, plan: Plan, k: int, gone: Container[int]) -> None:
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
    text: Text,
    k: int,
    setup: Setup,
    joined: str,
    inputs: Sequence[str],
    outs: Sequence[str],
    places: Sequence[str | None],
    makes_input: bool,
) -> None:
    """Call the function's forward, and see to it that its results are where they belong."""
    options = _options(text, k, setup)
    takes_out = setup.declaration.takes_out
    if joined:
        options.append(joined)
    if takes_out and (len(outs) > 1 or outs[0] != "None"):
        options.append(f"out={outs[0]}" if len(outs) == 1 else f"out=({', '.join(outs)})")
    method = "forward_joined" if joined else "forward"
    method += "_input" if makes_input else ""
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


def _existing(text: Text, out: str, place: str, spec: Spec) -> None:
    """Let `out` be the memory of a storage."""
    text.add(
        f"{out} = {place}.array",
        f"if {out} is None or not holds({out}):",
        f"    {out} = {place}.allocate({text.name('dtype', spec.dtype)}, backend)",
    )


def _input(text: Text, plan: Plan, k: int, position: int, name: str) -> str:
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


def compute_again(text: Text, plan: Plan, steps: Sequence[ForwardStep]) -> None:
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


def _options(text: Text, k: int, setup: Setup) -> list[str]:
    options = []
    if setup.declaration.operands:
        options.append(f"**nodes[{k}].operands")
    if setup.function.random:
        options.append(f"random=nodes[{k}].{'same_random' if text.is_again else 'random'}()")
    if setup.scratch:
        options.append(f"scratch={text.empty(Spec((setup.scratch,), _BYTES))}")
    return options
