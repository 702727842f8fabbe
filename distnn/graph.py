"""Value and Node: the graph that calls of functions leave behind.

A Value is a vertex: what all Variables that stand for it share. A Node is one call of a function,
from Values to Values. A Node holds its inputs, and a Value its parent; a Node knows its outputs
weakly, so a graph has no cycles and is freed the moment nobody refers to it.

In a dynamic graph a Value does not hold its data. The user's Variables do, and the Nodes whose
gradients will read them: what nobody wants any more is freed while the graph still lives.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from . import transfer
from .context import current_backend, current_world
from .errors import ClearedError, GraphError
from .evaluation import read_indices, run_forward
from .function import Setup
from .ndarray import NdArray, Storage
from .random import Draw

if TYPE_CHECKING:
    from .execution import Execution
    from .variable import Variable

_FREED = (
    "nobody held it and no gradient reads it, so a dynamic graph let it go; keep the Variable that "
    "the function returned"
)
_creation = itertools.count()


class _Version:
    """Counts changes to existing graphs: a static graph sees by it that it is unchanged."""

    def __init__(self) -> None:
        self.number = 0

    def changed(self) -> None:
        self.number += 1


version = _Version()


class Value:
    """One value of a graph: its data, its gradient, its flags and the Node that computes it."""

    __slots__ = (
        "__weakref__",
        "_data",
        "_grad",
        "_weak_data",
        "execution",
        "index",
        "name",
        "need",
        "parent",
        "persistent",
        "shape",
    )

    def __init__(
        self,
        shape: tuple[int, ...],
        need: bool | None = None,
        parent: Node | None = None,
        index: int = 0,
    ) -> None:
        self.shape = shape
        self.need = need  # as the user set it; None: inherited from the inputs
        self.parent = parent
        self.index = index  # which of the parent's outputs
        self.persistent = False
        self.name = ""
        self.execution: Execution | None = None  # of the graph that ends here
        self._data: NdArray | None = None
        self._weak_data: Callable[[], NdArray | None] | None = None
        self._grad: NdArray | None = None

    @property
    def data(self) -> NdArray:
        data = self._data
        if data is not None:
            return data
        if self._weak_data is not None:
            data = self._weak_data()
            if data is None:
                data = self._recovered()
            if data is None:
                raise ClearedError(f"[data] there are no data to read: {_FREED}")
            return data
        if self.parent is None:
            self._data = NdArray._of(Storage(self.shape, current_backend().dtype, 0.0), self.shape)
        else:
            dtype = self.parent.setup.results[self.index].dtype
            self._data = NdArray._of(Storage(self.shape, dtype, None), self.shape)
        return self._data

    @data.setter
    def data(self, data: NdArray) -> None:
        self._data = data
        self._weak_data = None
        version.changed()

    def present_data(self) -> NdArray | None:
        """The data if there are any; unlike `data` it makes none."""
        if self._data is None and self._weak_data is not None:
            return self._weak_data()
        return self._data

    def hold_weakly(self, data: NdArray) -> None:
        """Let others decide how long the data live."""
        self._data = None
        self._weak_data = weakref.ref(data)

    def _recovered(self) -> NdArray | None:
        """The data, if the parent kept them for its gradient."""
        data = None if self.parent is None else self.parent.kept_output(self.index)
        if data is not None:
            self._weak_data = weakref.ref(data)
        return data

    @property
    def grad(self) -> NdArray:
        if self._grad is None:
            backend = current_backend()
            dtype = backend.parameter_dtype if self.parent is None else backend.dtype
            storage = Storage(self.shape, dtype, 0.0)
            storage.zeroing = True  # nothing was written: the first gradient overwrites
            self._grad = NdArray._of(storage, self.shape)
        return self._grad

    @grad.setter
    def grad(self, grad: NdArray) -> None:
        self._grad = grad
        version.changed()

    @property
    def need_grad(self) -> bool:
        if self.need is not None:
            return self.need
        return self.parent is not None and self.parent.need_grad


class Node:
    """One call of a function in a graph: what `Variable.parent` returns."""

    __slots__ = (
        "__weakref__",
        "_draw",
        "_effects",
        "_kept",
        "_positions",
        "eager",
        "need",
        "operands",
        "order",
        "setup",
        "sources",
        "targets",
    )

    def __init__(
        self,
        setup: Setup,
        sources: tuple[Value | None, ...],
        operands: dict[str, Any],
        eager: bool,
        need: tuple[bool, ...],
    ) -> None:
        self.setup = setup
        self.sources = sources
        self.operands = operands
        self.order = next(_creation)
        self.eager = eager  # computed when it was called: its need of gradients is settled
        self.need = need
        self.targets: list[weakref.ref[Value] | None] = [None] * setup.n_outputs
        # Arrays that gradients will read, by position (function.Setup says what a position is).
        self._positions: tuple[int, ...] = ()
        self._kept: tuple[NdArray, ...] | None = None
        self._effects = 0  # of the kept arrays' storages, when they were kept
        self._draw: Draw | None = None
        if not eager and self.seed >= 0:
            current_world().seeded.add(self)

    # -- what users see -----------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Name of the function, as NNabla spells it: `SoftmaxCrossEntropy`."""
        return "".join(part.capitalize() for part in self.setup.function.name.split("_"))

    @property
    def info(self) -> FunctionInfo:
        return FunctionInfo(self)

    @property
    def inputs(self) -> list[Variable]:
        from .variable import Variable

        return [Variable._of(value) for value in self.sources if value is not None]

    @property
    def outputs(self) -> list[Variable]:
        from .variable import Variable

        return [Variable._of(self.output(i)) for i in range(self.setup.n_outputs)]

    @property
    def context(self) -> str:
        return repr(self.setup.backend)

    @property
    def need_grad(self) -> bool:
        return True in self.need

    def __repr__(self) -> str:
        return f"<{self.name} {self.setup.input_shapes} -> {[s.shape for s in self.setup.results]}>"

    # -- graph --------------------------------------------------------------------------------

    def output(self, index: int) -> Value:
        """The Value of an output; made anew if nobody refers to it any more."""
        reference = self.targets[index]
        value = None if reference is None else reference()
        if value is None:
            value = Value(self.setup.results[index].shape, None, self, index)
            self.targets[index] = weakref.ref(value)
            if self.eager:
                kept = self.kept_output(index)
                value._weak_data = _nothing if kept is None else weakref.ref(kept)
        return value

    def live_output(self, index: int) -> Value | None:
        reference = self.targets[index]
        return None if reference is None else reference()

    def kept_output(self, index: int) -> NdArray | None:
        position = len(self.sources) + index
        if self._kept is None or position not in self._positions:
            return None
        return self._kept[self._positions.index(position)]

    # -- computing ----------------------------------------------------------------------------

    def execute(self, inplace: int | None = None) -> None:
        """Compute the outputs from the inputs' data, and keep what gradients will read.

        Args:
            inplace: number of an input that nobody reads afterwards: its memory takes the output.
        """
        setup = self.setup
        self._kept = None  # an earlier forward's arrays go back before new ones are taken
        inputs: list[Any] = [None if value is None else value.data for value in self.sources]
        if setup.function.alias:
            results: list[Any] = [self._execute_alias(inputs[0])]
        else:
            values = self._arrays(range(len(inputs)), inputs)
            results = self._results(None if inplace is None else inputs[inplace])
            options = self.operands
            if setup.function.random:
                options = {**options, "random": self.random()}
            new = run_forward(setup, values, results, options)
            if new:
                self.commit(new)
        if True in self.need:
            reads = setup.reads(self.need)
            self._positions = reads.either if self.eager else reads.backward
            self._keep(inputs + results)

    def commit(self, new: Sequence[Any]) -> None:
        """Give the inputs that the function updates their new values."""
        declaration = self.setup.declaration
        watch = current_world().before_effect
        for name, update in zip(declaration.updates, new, strict=True):
            source = self.sources[declaration.inputs.index(name)]
            if source is not None:
                target = source.data
                if watch is not None:
                    watch(target._storage)
                transfer.copy(target._view(target._storage.materialize()), update)
                target._storage.written()
                target._storage.effects += 1

    def _keep(self, arrays: Sequence[NdArray | None]) -> None:
        """Hold what gradients will read; copies of what later functions may change as an effect."""
        kept, effects = [], 0
        for position in self._positions:
            data = arrays[position]
            assert data is not None
            if data._storage.volatile:
                data = data.snapshot()
            effects += data._storage.effects
            kept.append(data)
        self._kept = tuple(kept)
        self._effects = effects

    def keep(self, kept: tuple[NdArray, ...]) -> None:
        """Hold what gradients will read; nothing of it is changed by effects."""
        self._kept = kept
        self._effects = 0

    def random(self) -> Any:
        """The random numbers of this execution."""
        self._draw = self._next_draw()
        return self.setup.backend.draw(self._draw)

    @property
    def seed(self) -> int:
        """Of a random function that was given a seed of its own; else -1."""
        function = self.setup.function
        return getattr(function, "seed", -1) if function.random else -1

    @property
    def draws(self) -> int:
        """How often a random function with a seed of its own has drawn."""
        return 0 if self._draw is None else self._draw.draw + 1

    @draws.setter
    def draws(self, count: int) -> None:
        self._draw = Draw(self.seed, 0, count - 1) if count else None

    def _next_draw(self) -> Draw:
        seed = self.seed
        world = current_world()
        if seed >= 0 and world.virtual_worker is None:
            return Draw(seed, 0, self.draws)
        # A count of its own would count the parts that this rank works on.
        return Draw(seed if seed >= 0 else world.seed, world.worker, world.next_draw())

    def _execute_alias(self, source: NdArray | None) -> NdArray:
        """The output is a window onto the input's memory, unless the dtype has to change."""
        assert source is not None
        spec = self.setup.results[0]
        value = self.output(0)
        data = value.data
        if source._storage.array is None and source._storage.pending is None:
            self._arrays([0], [source])  # raises, with the input's name
        if source._storage.dtype == spec.dtype:
            data._storage = source._storage
            data._offset = source._offset
        else:
            values = source.read(spec.dtype, self.setup.backend).reshape(spec.shape)
            data._storage = Storage(spec.shape, spec.dtype, None)
            data._offset = 0
            data._storage.place(values.copy())
        return data

    def _results(self, reused: NdArray | None) -> list[NdArray]:
        """Arrays for outputs and saved results; those without a Value live as long as kept."""
        setup = self.setup
        results = []
        for i, spec in enumerate(setup.results):
            value = self.live_output(i) if i < len(self.targets) else None
            if value is not None:
                results.append(value.data)
            else:
                results.append(NdArray._of(Storage(spec.shape, spec.dtype, None), spec.shape))
        if reused is not None and not reused._storage.exported:
            storage = results[0]._storage
            if storage.array is None:
                storage.array = reused._storage.array
        return results

    def _arrays(self, positions: Iterable[int], found: Iterable[NdArray | None]) -> list[Any]:
        """What is at these positions of a call, as arrays for functions."""
        setup = self.setup
        backend, dtypes, names = setup.backend, setup.dtypes, setup.index_names
        arrays: list[Any] = []
        position = 0
        try:
            for position, data in zip(positions, found, strict=True):
                if data is None:
                    arrays.append(None)
                elif names and position in names:
                    name = names[position]
                    arrays.append(read_indices(data, backend, setup.function.name, name))
                else:
                    arrays.append(data.read(dtypes[position], backend))
        except ClearedError as error:
            name = setup.position_name(position)
            raise ClearedError(f"[{setup.function.name}] {name}: {error}") from None
        return arrays

    def kept_arrays(self) -> dict[int, Any]:
        """The arrays that the gradients read, by position."""
        if self._kept is None:
            raise ClearedError(
                f"[backward] {self.setup.function.name} has nothing to compute gradients from: "
                "call forward() first, and once before each backward(clear_buffer=True)"
            )
        effects = 0
        for data in self._kept:
            effects += data._storage.effects
        if effects != self._effects:
            raise GraphError(
                f"[backward] what the gradient of {self.setup.function.name} reads was changed, by "
                "assign or another function with an effect, after its forward; call forward() again"
            )
        try:
            arrays = self._arrays(self._positions, self._kept)
        except ClearedError as error:
            raise ClearedError(
                f"[backward] {self.setup.function.name} cannot compute its gradients: {error}; "
                "before backward() use forward(clear_no_need_grad=True), which keeps what "
                "gradients read, not clear_buffer=True"
            ) from None
        return dict(zip(self._positions, arrays, strict=True))

    def kept_data(self) -> dict[int, NdArray]:
        """As kept_arrays, but as NdArrays; empty where nothing was computed yet."""
        return dict(zip(self._positions, self._kept or (), strict=False))

    def release(self) -> None:
        """Forget what was kept for gradients."""
        kept, self._kept = self._kept, None
        if kept is not None and self.eager is False:
            # Executions of static graphs use arrays of saved results again, but not their memory.
            first = len(self.sources) + len(self.targets)
            for position, data in zip(self._positions, kept, strict=True):
                if position >= first:
                    data._storage.clear("backward(clear_buffer=True) freed it")

    def prepare(self) -> None:
        """Get ready for `keep`."""
        self._positions = self.setup.reads(self.need).backward
        self._kept = None


class FunctionInfo:
    """`parent.info`: the type name and the arguments of a call."""

    def __init__(self, node: Node) -> None:
        self.type_name = node.name
        attributes = {k: v for k, v in vars(node.setup.function).items() if not k.startswith("_")}
        attributes.pop("declaration", None)
        self.args: dict[str, Any] = {**attributes, **node.operands}


def _nothing() -> None:
    return None


def nodes_of(roots: Iterable[Value]) -> list[Node]:
    """All Nodes that the roots depend on, in the order in which they were created."""
    seen: set[Node] = set()
    stack = [value.parent for value in roots]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        stack.extend(value.parent for value in node.sources if value is not None)
    return sorted(seen, key=lambda node: node.order)


def needs(setup: Setup, sources: Sequence[Value | None]) -> tuple[bool, ...]:
    """For each input, whether a gradient is to be computed for it."""
    found = []
    for value, differentiable in zip(sources, setup.differentiable, strict=True):
        if value is None or not differentiable:
            found.append(False)
            continue
        need, parent = value.need, value.parent
        if need is None:
            need = parent is not None and True in parent.need
        found.append(need)
    return tuple(found)


Hook = Callable[[Node], object]
