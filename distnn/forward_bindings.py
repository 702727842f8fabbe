"""What the program of a forward works on: the arrays of one live graph, in the program's order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from .capture import Site
from .forward_program import forward_program
from .graph import Node
from .ndarray import NdArray
from .storage import Storage

if TYPE_CHECKING:
    from .execution import Execution


class Bindings(NamedTuple):
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


def bind(execution: Execution, flags: tuple[bool, bool]) -> Bindings | None:
    """What the program of a forward works on; None where it cannot."""
    plan = execution.plan
    program = plan.program(("forward", *flags), lambda: forward_program(plan, *flags))
    if program is None or any(node.eager for node in execution.nodes):
        return None
    steps = plan.forward(*flags)
    gone = {slot for step in steps for slot in step.clears}
    storages: list[Storage | None] = [None] * plan.n_slots
    data: list[NdArray | None] = [None] * plan.n_slots
    kept: list[tuple[NdArray, ...]] = []
    unheld: list[tuple[Node, int]] = []
    for slot, leaf in execution.leaves.items():
        data[slot] = leaf.data
    for call, node, positions in zip(plan.calls, execution.nodes, plan.kept, strict=True):
        for slot in call.targets:
            value = execution.value(slot)
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
    leaves = [leaf.data._storage for leaf in execution.leaves.values()]
    kept_storages = list({array._storage for arrays in kept for array in arrays})
    site = execution.site("forward")
    touched = [*leaves, *(storage for storage in storages if storage is not None)]
    return Bindings(program, leaves, data, storages, kept, kept_storages, unheld, site, touched)
