"""Node: one call of a function, from Values to Values; with them it makes the graph.

A Node holds its inputs, and a Value its parent; a Node knows its outputs weakly, so a graph has no
cycles and is freed the moment nobody refers to it.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import transfer
from .context import current_world
from .errors import ClearedError, GraphError
from .evaluation import read_indices, run_forward
from .function import Setup
from .ndarray import NdArray
from .random import Draw
from .recompute import kept_positions
from .storage import Storage
from .value import Value

if TYPE_CHECKING:
    from .variable import Variable

_creation = itertools.count()


class Node:
    """One call of a function in a graph: what `Variable.parent` returns."""

    __slots__ = (
        "__weakref__",
        "_ahead",
        "_draw",
        "_effects",
        "_kept",
        "_positions",
        "eager",
        "forgets",
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
        self.forgets = 0  # mask of results that backward computes again: as last computed
        self.targets: list[weakref.ref[Value] | None] = [None] * setup.n_outputs
        # Arrays that gradients will read, by position (function.Setup says what a position is).
        self._positions: tuple[int, ...] = ()
        self._kept: tuple[NdArray, ...] | None = None
        self._effects = 0  # of the kept arrays' storages, when they were kept
        self._draw: Draw | None = None
        self._ahead: Draw | None = None
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

    def live_outputs(self) -> list[Value]:
        found = (self.live_output(i) for i in range(len(self.targets)))
        return [value for value in found if value is not None]

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
            values = [*self._arrays(enumerate(inputs)).values()]
            results = self._results(None if inplace is None else inputs[inplace])
            options = self.operands
            if setup.function.random:
                options = {**options, "random": self.random()}
            new = run_forward(setup, values, results, options)
            if new:
                self.commit(new)
        if True in self.need or self.forgets:
            self.prepare()
            self._keep(inputs + results)

    def commit(self, new: Sequence[Any]) -> None:
        """Give the inputs that the function updates their new values."""
        self.before_effects()
        for source, update in zip(self._updated(), new, strict=True):
            if source is not None:
                target = source.data
                transfer.copy(target._view(target._storage.materialize()), update)
        self.after_effects()

    def _updated(self) -> list[Value | None]:
        declaration = self.setup.declaration
        return [self.sources[declaration.inputs.index(name)] for name in declaration.updates]

    def before_effects(self) -> None:
        """Tell whoever wants to know what is about to change."""
        watch = current_world().before_effect
        if watch is not None:
            for source in self._updated():
                if source is not None:
                    watch(source.data._storage)

    def after_effects(self) -> None:
        """Note that the inputs that the function updates have new values."""
        for source in self._updated():
            if source is not None:
                storage = source.data._storage
                storage.written()
                storage.effects += 1

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
        self._draw = self._ahead or self._next_draw()
        self._ahead = None
        return self.setup.backend.draw(self._draw)

    def same_random(self) -> Any:
        """The random numbers of the last execution, once more."""
        assert self._draw is not None
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
        value = self.output(0)
        data = value.data
        if source._storage.array is None and source._storage.pending is None:
            self._arrays([(0, source)])  # raises, with the input's name
        window = _window(self.setup, source)
        data._storage, data._offset = window._storage, window._offset
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

    def _arrays(self, found: Iterable[tuple[int, NdArray | None]]) -> dict[int, Any]:
        """What is at positions of a call, as arrays for functions."""
        setup = self.setup
        backend, dtypes, names = setup.backend, setup.dtypes, setup.index_names
        arrays: dict[int, Any] = {}
        position = 0
        try:
            for position, data in found:
                if data is None:
                    arrays[position] = None
                elif position not in names or data._storage.dtype is dtypes[position]:
                    arrays[position] = data.read(dtypes[position], backend)
                else:
                    name = names[position]
                    arrays[position] = read_indices(data, backend, setup.function.name, name)
        except ClearedError as error:
            name = setup.position_name(position)
            raise ClearedError(f"[{setup.function.name}] {name}: {error}") from None
        return arrays

    def kept_arrays(self, again: Mapping[int, NdArray] | None = None) -> dict[int, Any]:
        """The arrays that the gradients read, by position.

        Args:
            again: what was not kept, computed again.
        """
        self._check_kept()
        positions, kept = self._positions, self._kept
        assert kept is not None
        if not kept and not again:
            return {}
        if again:
            positions, kept = (*positions, *again), (*kept, *again.values())
        return self._for_gradients(zip(positions, kept, strict=True))

    def _for_gradients(self, found: Iterable[tuple[int, NdArray | None]]) -> dict[int, Any]:
        try:
            return self._arrays(found)
        except ClearedError as error:
            raise ClearedError(
                f"[backward] {self.setup.function.name} cannot compute its gradients: {error}; "
                "before backward() use forward(clear_no_need_grad=True), which keeps what "
                "gradients read, not clear_buffer=True"
            ) from None

    def _check_kept(self) -> None:
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

    def kept_inputs(self) -> dict[int, Any]:
        """The inputs from which to compute results again, those that were forgotten excepted."""
        self._check_kept()
        return self._for_gradients(self._inputs({}).items())

    def execute_again(self, again: Mapping[int, NdArray]) -> list[NdArray]:
        """The results (outputs, then saved), computed again as they were and without effects.

        Args:
            again: inputs that were forgotten, by position.
        """
        self._check_kept()
        setup = self.setup
        found = self._inputs(again)
        if setup.function.alias:
            return [_window(setup, found[0])]
        values: list[Any] = [None] * len(self.sources)
        for position, array in self._for_gradients(found.items()).items():
            values[position] = array
        options = self.operands
        if setup.function.random:
            options = {**options, "random": self.same_random()}
        results = [NdArray._of(Storage(s.shape, s.dtype, None), s.shape) for s in setup.results]
        run_forward(setup, values, results, options)
        return results

    def _inputs(self, again: Mapping[int, NdArray]) -> dict[int, NdArray]:
        """Inputs by position: as they were kept; what the function updates as it is."""
        found = {**self.kept_data(), **again}
        inputs = {}
        for position, value in enumerate(self.sources):
            data = found.get(position)
            if data is None and value is not None and not value.forgotten:
                data = value.data
            if data is not None:
                inputs[position] = data
        return inputs

    def kept_data(self) -> dict[int, NdArray]:
        """As kept_arrays, but as NdArrays; empty where nothing was computed yet."""
        return dict(zip(self._positions, self._kept or (), strict=False))

    def data_at(self, position: int, again: bool) -> NdArray:
        """What is kept at a position; with `again` the input that is read to compute it again."""
        if again and position not in self._positions:
            value = self.sources[position]
            assert value is not None
            return value.data
        assert self._kept is not None
        return self._kept[self._positions.index(position)]

    def data_again(self) -> dict[int, NdArray]:
        """As kept_inputs, but as NdArrays."""
        return self._inputs({})

    def is_intact(self) -> bool:
        """Whether what gradients read is there, and as forward saw it."""
        if self._kept is None:
            return False
        return sum([data._storage.effects for data in self._kept]) == self._effects

    def release(self) -> None:
        """Forget what was kept for gradients."""
        kept, self._kept = self._kept, None
        if kept is not None and self.eager is False:
            # Executions of static graphs use arrays of results again that nobody else has, but not
            # their memory.
            first = len(self.sources)
            for position, data in zip(self._positions, kept, strict=True):
                index = position - first
                saved = index >= len(self.targets)
                if saved or (index >= 0 and self.live_output(index) is None):
                    data._storage.clear("backward(clear_buffer=True) freed it")

    def prepare(self, positions: tuple[int, ...] | None = None) -> None:
        """Get ready for `keep`, of what is at `positions` if these are known."""
        self._positions = self.positions() if positions is None else positions
        self._kept = None

    def positions(self) -> tuple[int, ...]:
        """What to keep in an execution that comes, for gradients and to compute results again."""
        reads: tuple[int, ...] = ()
        if True in self.need:
            found = self.setup.reads(self.need)
            reads = found.either if self.eager else found.backward
        hidden = [value is not None and value.forgotten for value in self.sources]
        if self.forgets or True in hidden:
            return kept_positions(self.setup, reads, hidden, self.forgets)
        return reads

    def keep_alias(self, result: NdArray) -> None:
        """As after `execute` of a function whose output is its input's memory."""
        if True in self.need or self.forgets:
            self.prepare()
            self._keep([None if v is None else v.data for v in self.sources] + [result])

    def draw_ahead(self) -> None:
        """Take the numbers of an execution that comes later."""
        self._ahead = self._next_draw()


class FunctionInfo:
    """`parent.info`: the type name and the arguments of a call."""

    def __init__(self, node: Node) -> None:
        self.type_name = node.name
        attributes = {k: v for k, v in vars(node.setup.function).items() if not k.startswith("_")}
        attributes.pop("declaration", None)
        self.args: dict[str, Any] = {**attributes, **node.operands}


def _nothing() -> None:
    return None


def _window(setup: Setup, source: NdArray) -> NdArray:
    """The result of a function whose output is its input's memory, unless the dtype changes."""
    spec = setup.results[0]
    if source._storage.dtype == spec.dtype:
        return NdArray._of(source._storage, spec.shape, source._offset)
    values = source.read(spec.dtype, setup.backend).reshape(spec.shape)
    storage = Storage(spec.shape, spec.dtype, None)
    storage.place(values.copy())
    return NdArray._of(storage, spec.shape)


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


def shapes_of(sources: Sequence[Value | None]) -> tuple[tuple[int, ...] | None, ...]:
    """The shapes of a call's inputs, by which its setup is found."""
    return tuple([None if value is None else value.shape for value in sources])


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
