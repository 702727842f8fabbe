"""Step: `with nn.step():`, a training step whose CUDA graphs are launched as one.

Inside of the block calls of forward, backward and solvers wait, as recorded functions do
(record.py), until the block ends or somebody looks at what they touch. Then they run in their
order, and their graphs are launched together (launching.py). On the CPU nothing waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from .capture import get_capture
from .context import World, current_world
from .errors import GraphError

if TYPE_CHECKING:
    from .record import Record

_inside: ContextVar[World | None] = ContextVar("distnn_step", default=None)  # whose step it is


@contextmanager
def step() -> Iterator[None]:
    """Launch forward, backward and the solver's calls inside of the block as one CUDA graph.

    For a GPU; on the CPU it changes nothing, and nowhere does it change values. Where something in
    the block looks at a result, a gradient or a parameter, what was called before is launched
    first: the step then takes several launches. An exception leaves the block when what was called
    before it has been done. With a communicator nothing is merged: exchanges are in no graph.

    Raises: GraphError inside of another step.

    >>> import numpy as np, distnn as nn, distnn.functions as F, distnn.solvers as S
    >>> w = nn.Variable.from_numpy_array(np.array([3.0], np.float32), need_grad=True)
    >>> loss, solver = F.sum(w * w), S.Sgd(0.25)
    >>> solver.set_parameters({"w": w})
    >>> for _ in range(3):
    ...     with nn.step():
    ...         loss.forward(clear_no_need_grad=True)
    ...         solver.zero_grad()
    ...         loss.backward(clear_buffer=True)
    ...         solver.update()
    >>> float(loss.d), float(w.d[0])
    (0.5625, 0.375)
    """
    if _inside.get() is not None:
        raise GraphError(
            "[step] this is inside of another step; end that one first: a step is one launch"
        )
    world = current_world()
    token = _inside.set(world)
    try:
        yield
    finally:
        _inside.reset(token)
        if world.record is not None:
            world.record.launch()


def waiting_calls() -> Record | None:
    """Where a call waits now; None where it runs at once."""
    world = current_world()
    if _inside.get() is not world or not get_capture():
        return None
    if (
        world.communicator is not None
        or world.before_effect is not None
        or world.virtual_worker is not None
    ):
        return None
    from .record import current_record

    return current_record()
