"""Where and how functions run: the World of a trainer, contexts, and the scoped switches.

A World is what one trainer owns: its parameters, memory of parameters, random state, default
context and communicator. A process has one; each rank of the threads transport has its own.
Switches (`context_scope`, `auto_forward`, `no_grad`) are context variables: threads do not disturb
each other. Threads that distnn starts run in a copy of their creator's context.
"""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ArgumentError, ContextError

if TYPE_CHECKING:
    from .backend import Backend
    from .storage import Storage

PRECISIONS = ("highest", "high", "tf32", "bf16", "fp16")
DEFAULT_SEED = 313  # NNabla's: initial weights equal its own, and are equal on every rank


def compute_recorded() -> None:
    """Compute the calls of this World that wait until somebody looks; see record.py."""
    record = _world.get().record
    if record is not None:
        record.flush()


def launch_step() -> None:
    """Launch what waits in a step (step.py): something that it depends on is going to change."""
    record = _world.get().record
    if record is not None:
        record.launch()


class World:
    """Parameters, random state, default context and communicator of one trainer."""

    def __init__(self) -> None:
        self.parameters: OrderedDict[str, Any] = OrderedDict()
        self.slabs: dict[Any, Any] = {}
        self.context = Context()
        self.communicator: Any = None
        self.backward_callbacks: list[Any] = []  # of every backward that is given none itself
        self.transport: Any = None  # of a rank that is a thread
        # Compressions of gradients that live, in order of creation: checkpoints save their states.
        self.compressions: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._parameter_generator: np.random.RandomState | None = None
        self.seed = DEFAULT_SEED
        self.draws = 0
        self.record: Any = None  # record.Record: calls that wait until somebody looks
        # Static calls of random functions with a seed of their own: they count their draws.
        self.seeded: weakref.WeakSet[Any] = weakref.WeakSet()
        self.virtual_worker: int | None = None  # inside a loop over virtual workers
        self.before_effect: Callable[[Storage], None] | None = None  # told of what will change

    @property
    def parameter_generator(self) -> np.random.RandomState:
        """What initializers draw from; made when first asked for: numpy.random loads slowly."""
        if self._parameter_generator is None:
            self._parameter_generator = np.random.RandomState(DEFAULT_SEED)
        return self._parameter_generator

    @parameter_generator.setter
    def parameter_generator(self, generator: np.random.RandomState) -> None:
        self._parameter_generator = generator

    @property
    def local_rank(self) -> int:
        """Number of this rank among those of its machine, also before the ranks are connected."""
        ranks = self.transport if self.communicator is None else self.communicator
        if ranks is not None:
            return ranks.local_rank
        from .launcher.place import place_of

        place = place_of(os.environ)
        return 0 if place is None else place.local_rank

    @property
    def worker(self) -> int:
        """Who draws random numbers: the virtual worker, outside of a loop over them the rank."""
        if self.virtual_worker is not None:
            return self.virtual_worker
        return 0 if self.communicator is None else self.communicator.rank

    def next_draw(self) -> int:
        """Number of the next draw of random numbers; each random function takes one as it runs."""
        if self.record is not None:
            self.record.launch()  # what was called before draws before
        draw = self.draws
        self.draws += 1
        return draw


class Context:
    """What functions run on: a backend, an array class and a device.

    Args:
        backend: backends in order of preference, each `"<name>:<type_config>"`; default
            `["cpu:float"]`. The type configuration is float (float32), half (float16) or double.
        array_class: kept for NNabla's scripts; the backend decides.
        device_id: number of the device, as text or int; "auto" is that of this rank: its number
            among the ranks of this machine. Where a rank sees one GPU only, as launchers and Slurm
            arrange it, it is that one.
        precision: "highest" is float32. "high" makes products of matrices and convolutions of
            three products of bfloat16 each, nearly as exact, on CPUs with tile registers. "tf32"
            rounds their inputs to 10 bits of mantissa, on a GPU's tensor cores. "bf16" and "fp16"
            make the results of all functions bfloat16 or float16; parameters, their gradients and
            sums inside of functions stay float32. "bf16" also goes with type_config "half". On
            the CPU "high" and "bf16" need distnn[cpu]: docs/cpu.md.

    >>> import distnn as nn
    >>> nn.Context(["cpu:float"]).backend
    ['cpu:float']
    """

    def __init__(
        self,
        backend: list[str] | str | None = None,
        array_class: str = "",
        device_id: str | int = "0",
        precision: str = "highest",
    ) -> None:
        if backend is None:
            backend = ["cpu:float"]
        self.backend = [backend] if isinstance(backend, str) else list(backend)
        self.array_class = array_class
        self.device_id = str(device_id)
        self.precision = precision

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)
        object.__setattr__(self, "_resolved", None)

    def __getitem__(self, name: str) -> Any:
        if name not in ("backend", "array_class", "device_id", "precision"):
            raise ArgumentError(
                f"[Context] has no {name!r}; use 'backend', 'array_class', 'device_id' or "
                "'precision'"
            )
        return getattr(self, name)

    @property
    def _key(self) -> tuple[tuple[str, ...], str, str, str]:
        return (tuple(self.backend), self.array_class, self.device_id, self.precision)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Context) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        rest = f"array_class={self.array_class!r}, device_id={self.device_id!r}"
        if self.precision != "highest":
            rest += f", precision={self.precision!r}"
        return f"Context({self.backend}, {rest})"

    def resolve(self) -> Backend:
        """The backend that carries this context out; raises ContextError if there is none here."""
        resolved: Backend | None = self._resolved  # type: ignore[attr-defined]
        if resolved is None or not resolved.current:
            # To number 0 it does not matter, and nearly all contexts have that.
            local_rank = 0 if self.device_id == "0" else _world.get().local_rank
            resolved = _resolve(*self._key, local_rank)
            object.__setattr__(self, "_resolved", resolved)
        return resolved


def _resolve(
    backends: tuple[str, ...], array_class: str, device_id: str, precision: str, local_rank: int
) -> Backend:
    from .backend import cpu_backend

    if precision not in PRECISIONS:
        raise ContextError(
            f"[Context] precision is {precision!r}; use one of {', '.join(map(repr, PRECISIONS))}"
        )

    for text in backends:
        name, _, type_config = text.partition(":")
        if name == "cpu":
            return cpu_backend(type_config or "float", precision)
        if name in ("cuda", "cudnn"):
            from .ext_utils import require_cupy

            if precision == "high":
                raise ContextError(
                    "[Context] precision 'high' is of products on the CPU; on a GPU use 'highest' "
                    "or 'tf32'"
                )
            require_cupy(name)
            from .cuda.backend import cuda_backend
            from .cuda.device import device_number

            device = device_number(device_id, local_rank)
            return cuda_backend(type_config or "float", device, precision)
    raise ContextError(
        f"[Context] no backend of {list(backends)} is known; use 'cpu', for example "
        "Context(['cpu:float'])"
    )


_DEFAULT_WORLD = World()
_world: ContextVar[World] = ContextVar("distnn_world", default=_DEFAULT_WORLD)
_context: ContextVar[Context | None] = ContextVar("distnn_context", default=None)
_auto_forward: ContextVar[bool] = ContextVar("distnn_auto_forward", default=False)
_deferring: ContextVar[bool] = ContextVar("distnn_deferring", default=True)
_recording: ContextVar[bool] = ContextVar("distnn_recording", default=True)

current_world = _world.get


@contextmanager
def world_scope(world: World) -> Iterator[World]:
    """Use `world` inside the block: its parameters, random state, context and communicator."""
    token = _world.set(world)
    try:
        yield world
    finally:
        _world.reset(token)


def get_current_context() -> Context:
    """The context in which a function called now would run."""
    return _context.get() or _world.get().context


def current_backend() -> Backend:
    """The backend of the current context."""
    return get_current_context().resolve()


def set_default_context(ctx: Context) -> None:
    """Run functions in `ctx` from now on, in every thread of this World.

    >>> import distnn as nn
    >>> from distnn.ext_utils import get_extension_context
    >>> nn.set_default_context(get_extension_context('cpu'))
    """
    _check_context("set_default_context", ctx)
    if _context.get() is not None:
        raise ContextError(
            "[set_default_context] cannot change the default inside a context_scope, which would "
            "hide it; leave the scope first"
        )
    ctx.resolve().select()  # fails now, at the user's line, if ctx cannot be used here
    _world.get().context = ctx


@contextmanager
def context_scope(ctx: Context) -> Iterator[None]:
    """Run functions that are called inside the block in `ctx`.

    >>> import distnn as nn
    >>> with nn.context_scope(nn.Context(['cpu:double'])):
    ...     nn.get_current_context().backend
    ['cpu:double']
    """
    _check_context("context_scope", ctx)
    ctx.resolve().select()
    token = _context.set(ctx)
    try:
        yield
    finally:
        _context.reset(token)
        current_backend().select()


def _check_context(function: str, ctx: object) -> None:
    if not isinstance(ctx, Context):
        raise ArgumentError(
            f"[{function}] ctx is {type(ctx).__name__}; pass a Context, for example "
            "get_extension_context('cpu')"
        )


@contextmanager
def auto_forward(auto: bool = True, defer: bool = True) -> Iterator[None]:
    """Compute as functions are called: a dynamic graph, rebuilt every iteration.

    Args:
        auto: False switches to static graphs inside the block.
        defer: calls wait until somebody looks at a value, and then run as one program if such a
            sequence of calls was seen before (docs/static_and_dynamic.md). False: each function
            computes when it is called. The values are the same to the bit.

    >>> import numpy as np, distnn as nn, distnn.functions as F
    >>> with nn.auto_forward():
    ...     y = F.relu(nn.Variable.from_numpy_array(np.array([-1., 2.])))
    >>> y.d
    array([0., 2.], dtype=float32)
    """
    token = _auto_forward.set(bool(auto))
    deferring = _deferring.set(bool(defer))
    try:
        yield
    finally:
        _deferring.reset(deferring)
        _auto_forward.reset(token)


def set_auto_forward(auto: bool) -> None:
    """Switch the dynamic mode on or off for this thread until it is set again."""
    _auto_forward.set(bool(auto))


get_auto_forward = _auto_forward.get
is_deferring = _deferring.get


@contextmanager
def no_grad(no_grad_: bool = True) -> Iterator[None]:
    """Record no graph inside the block: results of functions have no parent and need no gradient.

    Together with `auto_forward` nothing is kept for backward. In static mode the graph is still
    recorded, since it must be computed later, but no gradient flows through it.
    """
    token = _recording.set(not no_grad_)
    try:
        yield
    finally:
        _recording.reset(token)


is_recording = _recording.get
