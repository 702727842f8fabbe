"""Function: what one differentiable operation is. A shape rule, a forward and gradient rules.

A function is declared in one place. Its parameter names say everything the engine has to know:

    class Affine(Function):
        def setup(self, x, w, b=None): ...         # inputs, in order; shapes and dtypes only
        def forward(self, xp, x, w, b=None, *, out=None): ...
        def grad_x(self, xp, dy, w): ...           # one rule per input; what it names is kept
        def grad_w(self, xp, dy, x): ...
        def grad_b(self, xp, dy): ...

Instance attributes are structure: two instances with equal attributes are the same function.
Keyword-only parameters of `forward` are operands: numbers that may differ from call to call
(`x * 0.1`, dropout's p) without being another function.

A rule may name inputs, public outputs, `d<output>`, operands, `<input>_shape`, and `index` where
the inputs are variadic. It is pure: on arrays it computes, on Variables it records.
"""

from __future__ import annotations

import enum
import functools
import inspect
import logging
import math
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from .errors import ArgumentError, ShapeError

if TYPE_CHECKING:
    from .backend import Backend
    from .formula import Formula

logger = logging.getLogger("distnn")

Shape = tuple[int, ...]

_INDEX = np.dtype(np.int64)


@dataclass(frozen=True, slots=True)
class Spec:
    """Shape and dtype of an array."""

    shape: Shape
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Rule(NamedTuple):
    """How to compute the gradient of one input, and the names it reads."""

    names: tuple[str, ...]
    compute: Callable[..., Any]  # compute(xp, **{name: value})
    formula: Formula | None = None  # that it computes, of arrays and numbers of these names


class Declaration:
    """What the signatures of a function's methods declare; made once per class or formula."""

    def __init__(
        self,
        *,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        rules: Mapping[str, Rule],
        operands: Sequence[str] = (),
        variadic: bool = False,
        optional: Sequence[str] = (),
        saved: Sequence[str] = (),
        updates: Sequence[str] = (),
        indices: Sequence[str] = (),
        forward_names: Sequence[str] = ("out",),
        backward_names: Sequence[str] | None = None,
        wants_dtype: bool = False,
    ) -> None:
        self.name = name
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.rules = dict(rules)
        self.operands = tuple(operands)
        self.operand_set = frozenset(operands)
        self.variadic = variadic
        self.optional = frozenset(optional)
        self.saved = tuple(saved)
        self.updates = tuple(updates)
        self.indices = frozenset(indices)
        self.takes_out = "out" in forward_names
        self.takes_scratch = "scratch" in forward_names
        self.backward_reads = None if backward_names is None else tuple(backward_names)
        self.wants_dtype = wants_dtype
        self._check()

    @functools.cached_property
    def per_input(self) -> Callable[[Sequence[Any]], Any]:
        """Makes what `backward` gets as `need` and `out`: `need.x`; a tuple if variadic."""
        if self.variadic:
            return tuple
        return namedtuple(f"{self.name}_inputs", self.inputs)._make  # type: ignore[attr-defined]

    def _check(self) -> None:
        arrays = (*self.inputs, *self.outputs)
        allowed = {*arrays, *("d" + name for name in self.outputs), *self.operands}
        allowed |= {f"{name}_shape" for name in self.inputs}
        if self.variadic:
            allowed.add("index")
        for name, rule in self.rules.items():
            _check_names(f"{self.name}.grad_{name}", rule.names, allowed)
        if self.backward_reads is not None:
            _check_names(f"{self.name}.backward", self.backward_reads, allowed | {*self.saved})
        for name in (*self.updates, *self.indices):
            if name not in self.inputs:
                raise TypeError(f"{self.name}: {name!r} is no input; inputs are {self.inputs}")


def _check_names(where: str, names: Sequence[str], allowed: set[str]) -> None:
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise TypeError(f"{where} reads {unknown}; it may read {sorted(allowed)}")


class Function:
    """Base of all functions; see the module's text for how one is declared.

    Class attributes:
        outputs: names of the results; rules may read them.
        saved: further results of forward that only `backward` reads.
        updates: inputs that forward gives new values, returned after outputs and saved.
        indices: inputs that are read as integers (labels, indices).
        optional: inputs that may be None, besides those whose default in setup is None.
        alias: the output is the input's memory in another shape.
        inplace: numbers of inputs whose memory `out` may be.
        formula: of the output, where the function is one of its inputs and operands.
        check: a method (xp, indices, shapes of the inputs) that raises LabelError where labels or
            indices are out of range, by which a call of the function can wait.
        random: forward takes `random`, a source of random numbers for this call; an attribute
            `seed` of 0 or more gives it numbers of its own.
        waits: in a dynamic graph a call may be computed later, when somebody looks.
        recomputable: forward may run again for backward (nn.recompute), with the same results.
            None: unless it updates inputs; True for those says that no result depends on what is
            updated.
        protects: buffers of its inputs are not cleared.
        cuda: "module.Class" in distnn.cuda that carries the function out on a GPU; where there is
            none its own text runs on CuPy arrays.
        cpu: the same in distnn.cpu, for kernels that Numba compiles.
    """

    outputs: ClassVar[tuple[str, ...]] = ("y",)
    saved: ClassVar[tuple[str, ...]] = ()
    updates: ClassVar[tuple[str, ...]] = ()
    indices: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()
    alias: ClassVar[bool] = False
    inplace: ClassVar[tuple[int, ...]] = ()
    random: ClassVar[bool] = False
    protects: ClassVar[bool] = False
    cuda: ClassVar[str] = ""
    formula: Any = None
    check: Any = None
    waits: ClassVar[bool] = True
    recomputable: ClassVar[bool | None] = None
    cpu: ClassVar[str] = ""

    declaration: Declaration

    def __init_subclass__(cls, by_signature: bool = True, **kwargs: Any) -> None:
        """Read the declaration off the signatures, unless each instance brings its own."""
        super().__init_subclass__(**kwargs)
        if by_signature:
            cls.declaration = _declare(cls)

    @classmethod
    def of(cls, *attributes: Any) -> Any:
        """The instance with these attributes; the same object each time."""
        return _interned(cls, *attributes)  # type: ignore[arg-type]  # classes are hashable

    @property
    def name(self) -> str:
        """The name that error messages use."""
        return self.declaration.name

    def key(self) -> tuple:
        """Equal for functions that compute the same thing; raises TypeError if not hashable."""
        key = self.__dict__.get("_key")
        if key is None:
            attributes = ((name, _tagged(value)) for name, value in vars(self).items())
            key = (type(self), *attributes)
            hash(key)
            object.__setattr__(self, "_key", key)
        return key

    def can_recompute(self) -> bool:
        """Whether forward may run again, see `recomputable`."""
        found = self.recomputable
        return not self.declaration.updates if found is None else found

    # -- what a function implements -----------------------------------------------------------

    def setup(self, *specs: Any, **kwargs: Any) -> Any:
        """Specs of outputs and saved results; raises ShapeError where the inputs do not fit."""
        raise NotImplementedError

    def forward(self, xp: Any, *arrays: Any, **kwargs: Any) -> Any:
        """The outputs, then saved results, then new values of `updates`; a tuple if several."""
        raise NotImplementedError

    def scratch(self, *specs: Any) -> int:
        """Bytes of scratch memory that forward and backward want."""
        return 0

    if TYPE_CHECKING:  # calling.py sets it

        def __call__(self, *inputs: Any, **operands: Any) -> Any: ...


@functools.lru_cache(maxsize=4096, typed=True)
def _interned(cls: Any, *attributes: Any) -> Function:
    return cls(*attributes)


def _tagged(value: Any) -> Any:
    """`value` with its type, for keys: 1, 1.0 and True are equal but not the same attribute."""
    if isinstance(value, tuple):
        return tuple(_tagged(item) for item in value)
    return (type(value), value)


def _declare(cls: type[Function]) -> Declaration:
    """Read a function's signatures."""
    setup = _parameters(cls.setup)
    inputs = [p.name for p in setup if p.kind is p.POSITIONAL_OR_KEYWORD]
    starred = [p.name for p in setup if p.kind is p.VAR_POSITIONAL]
    if starred and inputs:
        raise TypeError(f"{cls.__name__}.setup mixes {inputs} with *{starred[0]}; take one or none")
    forward = _parameters(cls.forward)[1:]
    names = [p.name for p in forward if p.kind in (p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    if names != (starred or inputs):
        raise TypeError(f"{cls.__name__}.forward takes {names} but setup takes {starred or inputs}")
    keywords = [p.name for p in forward if p.kind is p.KEYWORD_ONLY]
    rules = {}
    for name in starred or inputs:
        method = getattr(cls, f"grad_{name}", None)
        if method is not None:
            read = tuple(p.name for p in _parameters(method)[1:])
            rules[name] = Rule(read, method)
    backward = getattr(cls, "backward", None)
    backward_names = None
    if backward is not None:
        parameters = _parameters(backward)[2:]
        backward_names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        if "scratch" in (p.name for p in parameters) and "scratch" not in keywords:
            raise TypeError(f"{cls.__name__}.backward takes scratch but forward does not")
    return Declaration(
        name=_snake(cls.__name__),
        inputs=starred or inputs,
        variadic=bool(starred),
        optional=[*cls.optional, *(p.name for p in setup if p.default is None)],
        outputs=cls.outputs,
        saved=cls.saved,
        updates=cls.updates,
        indices=cls.indices,
        rules=rules,
        operands=[n for n in keywords if n not in ("out", "scratch", "random")],
        forward_names=keywords,
        backward_names=backward_names,
        wants_dtype=any(p.name == "dtype" for p in setup if p.kind is p.KEYWORD_ONLY),
    )


def _parameters(method: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(method).parameters.values())[1:]


def _snake(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


class Setup:
    """A function at one signature: input shapes and a backend. Immutable, shared, holds no arrays.

    Positions number the arrays of a call: inputs, then outputs, then saved results.
    """

    __slots__ = (
        "_reads",
        "backend",
        "declaration",
        "differentiable",
        "dtypes",
        "function",
        "implementation",
        "index_names",
        "input_shapes",
        "n_outputs",
        "outputs",
        "results",
        "scratch",
        "shapes",
        "shared",
    )

    def __init__(
        self, function: Function, shapes: tuple[Shape | None, ...], backend: Backend
    ) -> None:
        declaration = function.declaration
        self.function = function
        self.declaration = declaration
        self.backend = backend
        self.input_shapes = shapes
        _check_arity(function, shapes)
        names = declaration.inputs * len(shapes) if declaration.variadic else declaration.inputs
        # Positions of the inputs that are read as integers, and their names.
        self.index_names = {i: n for i, n in enumerate(names) if n in declaration.indices}
        specs = [
            None if shape is None else Spec(shape, self._input_dtype(names[i]))
            for i, shape in enumerate(shapes)
        ]
        options = {"dtype": backend.dtype} if declaration.wants_dtype else {}
        results = function.setup(*specs, **options)
        self.results: tuple[Spec, ...] = results if isinstance(results, tuple) else (results,)
        self.n_outputs = len(declaration.outputs)
        self.outputs = self.results[: self.n_outputs]  # those that users see
        inputs = (backend.dtype if spec is None else spec.dtype for spec in specs)
        self.dtypes = (*inputs, *(spec.dtype for spec in self.results))  # by position
        # What carries the function out: itself, or its twin.
        self.implementation: Any = backend.implementation(function, specs)
        self.scratch = self.implementation.scratch(*specs) if declaration.takes_scratch else 0
        if declaration.variadic:
            self.shapes: dict[str, Any] = {declaration.inputs[0] + "_shape": shapes}
        else:
            self.shapes = {f"{n}_shape": s for n, s in zip(names, shapes, strict=True)}
        self.differentiable = tuple(self.rule(i) is not None for i in range(len(shapes)))
        self.shared = False
        self._reads: dict[tuple[bool, ...], Reads] = {}

    def _input_dtype(self, name: str) -> np.dtype:
        if name in self.declaration.indices:
            return _INDEX
        updated = name in self.declaration.updates
        return self.backend.update_dtype if updated else self.backend.dtype

    @property
    def recomputed_from(self) -> list[int]:
        """Positions of the inputs on which results depend."""
        names = () if self.declaration.variadic else self.declaration.inputs
        updated = {i for i, name in enumerate(names) if name in self.declaration.updates}
        shapes = enumerate(self.input_shapes)
        return [i for i, shape in shapes if shape is not None and i not in updated]

    def position_name(self, position: int) -> str:
        """`input x`, or `output y`."""
        declaration = self.declaration
        n = len(self.input_shapes)
        if position >= n:
            return f"output {(*declaration.outputs, *declaration.saved)[position - n]}"
        if declaration.variadic:
            return f"input {declaration.inputs[0]}[{position}]"
        return f"input {declaration.inputs[position]}"

    def saved_positions(self, need: tuple[bool, ...]) -> tuple[int, ...]:
        """Positions of the saved results that gradients read."""
        first = len(self.input_shapes) + self.n_outputs
        return tuple(p for p in self.reads(need).backward if p >= first) if True in need else ()

    def rule(self, index: int) -> Rule | None:
        """The gradient rule of input number `index`."""
        declaration = self.declaration
        name = declaration.inputs[0 if declaration.variadic else index]
        rule = declaration.rules.get(name)
        return None if rule is None else self.backend.rule(rule)

    def reads(self, need: tuple[bool, ...]) -> Reads:
        """Which arrays the gradients of the inputs in `need` read."""
        reads = self._reads.get(need)
        if reads is None:
            reads = self._reads[need] = Reads(self, need)
        return reads


class Kind(enum.Enum):
    """Where a gradient finds what it names."""

    ARRAY = enum.auto()  # at a position
    ARRAYS = enum.auto()  # all inputs, where they are variadic
    OUTER = enum.auto()  # the gradient of an output
    OPERAND = enum.auto()
    CONSTANT = enum.auto()


class Binding(NamedTuple):
    """A name that a gradient reads, and what it stands for."""

    name: str
    kind: Kind
    key: Any  # the position, the number of the output or of inputs, or the constant itself


class Reads:
    """What a setup's gradients read, for one choice of needed inputs; arrays by position."""

    __slots__ = ("backward", "by_rules", "either", "fast", "fast_bindings", "need", "rules")

    def __init__(self, setup: Setup, need: tuple[bool, ...]) -> None:
        declaration = setup.declaration
        rule_names: set[str] = set()
        self.by_rules: list[tuple[int, Rule, list[Binding]]] = []
        for index, needed in enumerate(need):
            rule = setup.rule(index) if needed else None
            if rule is not None:
                rule_names.update(rule.names)
                bindings = [_binding(setup, name, index) for name in rule.names]
                self.by_rules.append((index, rule, bindings))
        self.fast = declaration.backward_reads is not None and any(need)
        self.need = declaration.per_input(need) if self.fast else need
        fast_names = set(declaration.backward_reads or ()) if self.fast else set()
        self.fast_bindings = [
            _binding(setup, name) for name in (declaration.backward_reads or ()) if self.fast
        ]
        self.rules = _positions(setup, rule_names)
        self.backward = _positions(setup, fast_names) if self.fast else self.rules
        # nn.grad uses the rules: a dynamic graph, which cannot know what comes, keeps for both.
        self.either = _positions(setup, fast_names | rule_names)


def _binding(setup: Setup, name: str, index: int = -1) -> Binding:
    """What `name` stands for in the gradient of input number `index`."""
    declaration = setup.declaration
    n = len(setup.input_shapes)
    results = (*declaration.outputs, *declaration.saved)
    if name in declaration.operands:
        return Binding(name, Kind.OPERAND, None)
    if name in setup.shapes:
        return Binding(name, Kind.CONSTANT, setup.shapes[name])
    if name.startswith("d") and name[1:] in declaration.outputs:
        return Binding(name, Kind.OUTER, declaration.outputs.index(name[1:]))
    if name in results:
        return Binding(name, Kind.ARRAY, n + results.index(name))
    if declaration.variadic:
        is_inputs = name == declaration.inputs[0]
        return Binding(name, *((Kind.ARRAYS, n) if is_inputs else (Kind.CONSTANT, index)))
    position = declaration.inputs.index(name)
    if setup.input_shapes[position] is None:
        return Binding(name, Kind.CONSTANT, None)
    return Binding(name, Kind.ARRAY, position)


def _positions(setup: Setup, names: set[str]) -> tuple[int, ...]:
    declaration = setup.declaration
    n = len(setup.input_shapes)
    if declaration.variadic:
        positions = list(range(n)) if declaration.inputs[0] in names else []
    else:
        positions = [
            i
            for i, name in enumerate(declaration.inputs)
            if name in names and setup.input_shapes[i] is not None
        ]
    results = (*declaration.outputs, *declaration.saved)
    positions += [n + i for i, name in enumerate(results) if name in names]
    return tuple(positions)


def _check_arity(function: Function, shapes: tuple[Shape | None, ...]) -> None:
    declaration = function.declaration
    names = declaration.inputs
    if declaration.variadic:
        missing = [f"{names[0]}[{i}]" for i, s in enumerate(shapes) if s is None]
        if not shapes:
            raise ArgumentError(f"[{function.name}] got no inputs; pass one or more")
    else:
        if len(shapes) != len(names):
            raise ArgumentError(
                f"[{function.name}] got {len(shapes)} inputs but takes {', '.join(names)}"
            )
        missing = [
            n
            for n, s in zip(names, shapes, strict=True)
            if s is None and n not in declaration.optional
        ]
    if missing:
        raise ArgumentError(f"[{function.name}] {', '.join(missing)} is None; pass a Variable")


_MOST_SETUPS = 16384
_setups: dict[tuple, Setup] = {}
_uncached: set[type] = set()


def prepare(function: Function, shapes: tuple[Shape | None, ...], backend: Backend) -> Setup:
    """The setup of `function` for these input shapes, made once and remembered."""
    try:
        key = (function.key(), shapes, backend)
    except TypeError as error:
        if type(function) not in _uncached:
            _uncached.add(type(function))
            logger.info("%s is planned anew at each call: %s", function.name, error)
        return Setup(function, shapes, backend)
    setup = _setups.get(key)
    if setup is None:
        if len(_setups) >= _MOST_SETUPS:
            _setups.clear()
        setup = _setups[key] = Setup(function, shapes, backend)
        setup.shared = True
    return setup


def broadcast_shapes(function: str, **shapes: Shape) -> Shape:
    """The common shape of arrays with as many axes each, where axes of length 1 broadcast."""
    ndims = {len(shape) for shape in shapes.values()}
    if len(ndims) == 1:
        common = tuple(
            lengths.pop() if len(lengths) == 1 else -1
            for lengths in (
                {n for n in axis if n != 1} or {1} for axis in zip(*shapes.values(), strict=True)
            )
        )
        if -1 not in common:
            return common
    text = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise ShapeError(
        f"[{function}] shapes do not broadcast: {text}; give all as many axes, each of the same "
        "length or of length 1 (F.reshape, F.broadcast)"
    )


def __getattr__(name: str) -> Any:
    if name == "PythonFunction":  # where NNabla has it
        from .python_function import PythonFunction

        return PythonFunction
    raise AttributeError(f"module 'distnn.function' has no attribute {name!r}")
