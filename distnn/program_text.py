"""What the text of a program is made of; see forward_program.py and backward_program.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .backend import Backend
from .evaluation import store, taken
from .formula import Formula
from .formula_chain import Joined
from .function import Spec
from .fusion import (
    FusedBackward,
    FusedForward,
)
from .plan import Plan


class Text:
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


def common_backend(plan: Plan) -> Backend | None:
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


def add_chain(
    text: Text,
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
