"""Recurrent layers with their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import functions as F
from ..errors import ShapeError
from ..functions.shapes import shape_of
from ..initializer import ConstantInitializer, UniformInitializer, calc_uniform_lim_glorot
from ..parameter import Initializer, get_parameter_or_create
from ..variable import Variable
from .connection import affine
from .scope import parametric_function_api


def _described(gates: str, biases: str) -> list[tuple[str, str, str, bool]]:
    return [
        ("weight_l0", "Weight of the first layer", f"(D, {gates}H, I + H)", True),
        ("weight", "Weights of the layers above", f"(L - 1, D, {gates}H, D H + H)", True),
        ("bias", "Biases", f"(L, D, {biases}H)", True),
    ]


def _parameters(
    name: str,
    gates: Sequence[int],
    biases: Sequence[int],
    x: Any,
    h: Any,
    inits: Sequence[Initializer],
    layers: int,
    bidirectional: bool,
    rng: Any,
    with_bias: bool,
    fix: bool,
) -> tuple[Any, Any, Any]:
    """weight_l0, weight and bias; None for what there is not."""
    for what, array in (("x", x), ("h", h)):
        if not shape_of(name, what, array):
            raise ShapeError(f"[{name}] {what} has no axes; pass (T, B, I) and (L, D, B, H)")
    directions = 2 if bidirectional else 1
    inputs, hidden = x.shape[-1], h.shape[-1]

    def parameter(key: str, shape: tuple[int, ...], initializer: Initializer) -> Any:
        return get_parameter_or_create(key, shape, initializer, True, not fix)

    def glorot(columns: int) -> Any:
        """The parts for the input and for the state are drawn as two weights."""

        def values(shape: Sequence[int]) -> np.ndarray:
            parts = [
                UniformInitializer(calc_uniform_lim_glorot(n, hidden), rng)((*shape[:-1], n))
                for n in (columns, hidden)
            ]
            return np.concatenate(parts, -1)

        return values

    w0_init, w_init, b_init = inits
    lead = (directions, *gates, hidden)
    first = parameter(
        "weight_l0",
        (*lead, inputs + hidden),
        glorot(inputs) if w0_init is None else w0_init,
    )
    above = bias = None
    if layers > 1:
        columns = directions * hidden
        above = parameter(
            "weight",
            (layers - 1, *lead, columns + hidden),
            glorot(columns) if w_init is None else w_init,
        )
    if with_bias:
        shape = (layers, directions, *biases, hidden)
        bias = parameter("bias", shape, ConstantInitializer() if b_init is None else b_init)
    return first, above, bias


@parametric_function_api("rnn", _described("", ""))
def rnn(
    x: Any,
    h: Any,
    w0_init: Initializer = None,
    w_init: Initializer = None,
    b_init: Initializer = None,
    num_layers: int = 1,
    nonlinearity: str = "tanh",
    dropout: float = 0.0,
    bidirectional: bool = False,
    training: bool = True,
    rng: Any = None,
    with_bias: bool = True,
    fix_parameters: bool = False,
) -> Any:
    """Elman's recurrent network with its weights and biases; see F.rnn.

    Args:
        x, h: (T, B, I) and (L, D, B, H).
        w0_init, w_init, b_init: initializers; default uniform after Glorot, of the parts for x and
            h each, and 0.
        num_layers, nonlinearity, dropout, bidirectional, training: see F.rnn.
        rng: generator of the default initializers.
        with_bias: use biases.
        fix_parameters: compute no gradients of the parameters in this call.
    Returns: y (T, B, D H) and h (L, D, B, H).

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> y, h = PF.rnn(nn.Variable((5, 2, 3)), nn.Variable((1, 1, 2, 6)))
    >>> y.shape
    (5, 2, 6)
    """
    parameters = _parameters(
        "rnn", (), (), x, h, (w0_init, w_init, b_init), num_layers, bidirectional, rng, with_bias,
        fix_parameters,
    )  # fmt: skip
    return F.rnn(x, h, *parameters, num_layers, nonlinearity, dropout, bidirectional, training)


@parametric_function_api("lstm", _described("4, ", "4, "))
def lstm(
    x: Any,
    h: Any,
    c: Any,
    w0_init: Initializer = None,
    w_init: Initializer = None,
    b_init: Initializer = None,
    num_layers: int = 1,
    dropout: float = 0.0,
    bidirectional: bool = False,
    training: bool = True,
    rng: Any = None,
    with_bias: bool = True,
    fix_parameters: bool = False,
) -> Any:
    """Long short-term memory with its weights and biases; see F.lstm.

    Args:
        x: (T, B, I).
        h, c: (L, D, B, H).
        num_layers, dropout, bidirectional, training: see F.lstm.
        w0_init, w_init, b_init, rng, with_bias, fix_parameters: see rnn.
    Returns: y (T, B, D H), and h and c (L, D, B, H).

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> y, h, c = PF.lstm(nn.Variable((5, 2, 3)), *[nn.Variable((1, 1, 2, 6)) for _ in range(2)])
    >>> y.shape
    (5, 2, 6)
    """
    parameters = _parameters(
        "lstm", (4,), (4,), x, h, (w0_init, w_init, b_init), num_layers, bidirectional, rng,
        with_bias, fix_parameters,
    )  # fmt: skip
    return F.lstm(x, h, c, *parameters, num_layers, dropout, bidirectional, training)


@parametric_function_api("gru", _described("3, ", "4, "))
def gru(
    x: Any,
    h: Any,
    w0_init: Initializer = None,
    w_init: Initializer = None,
    b_init: Initializer = None,
    num_layers: int = 1,
    dropout: float = 0.0,
    bidirectional: bool = False,
    training: bool = True,
    rng: Any = None,
    with_bias: bool = True,
    fix_parameters: bool = False,
) -> Any:
    """Gated recurrent units with their weights and biases; see F.gru.

    Args:
        x, h: (T, B, I) and (L, D, B, H).
        num_layers, dropout, bidirectional, training: see F.gru.
        w0_init, w_init, b_init, rng, with_bias, fix_parameters: see rnn.
    Returns: y (T, B, D H) and h (L, D, B, H).

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> y, h = PF.gru(nn.Variable((5, 2, 3)), nn.Variable((1, 1, 2, 6)))
    >>> y.shape
    (5, 2, 6)
    """
    parameters = _parameters(
        "gru", (3,), (4,), x, h, (w0_init, w_init, b_init), num_layers, bidirectional, rng,
        with_bias, fix_parameters,
    )  # fmt: skip
    return F.gru(x, h, *parameters, num_layers, dropout, bidirectional, training)


@parametric_function_api(
    "lstm",
    [
        ("affine/W", "Weight of i, o, f and g", "(inputs + state_size, 4, state_size)", True),
        ("affine/b", "Bias of i, o, f and g", "(4, state_size)", True),
    ],
)
def lstm_cell(
    x: Any,
    h: Any,
    c: Any,
    state_size: int,
    w_init: Initializer = None,
    b_init: Initializer = None,
    fix_parameters: bool = False,
) -> Any:
    """One step of long short-term memory, its weights in another order than those of lstm.

        i, o, f = sigmoid(W [x; h] + b),  g = tanh(W [x; h] + b)  (W, b of each)
        c' = f c + i g,  h' = o tanh(c')

    Args:
        x: (B, inputs).
        h, c: (B, state_size).
        w_init, b_init: initializers; default uniform after Glorot, and 0.
        fix_parameters: compute no gradients of the parameters in this call.
    Returns: h' and c'.

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> h, c = PF.lstm_cell(nn.Variable((2, 3)), nn.Variable((2, 6)), nn.Variable((2, 6)), 6)
    >>> h.shape, c.shape
    ((2, 6), (2, 6))
    """
    for what, state in (("h", h), ("c", c)):
        if shape_of("lstm_cell", what, state) != (x.shape[0], state_size):
            raise ShapeError(
                f"[lstm_cell] {what} has shape {state.shape} but x {x.shape} and state_size "
                f"{state_size} need ({x.shape[0]}, {state_size})"
            )
    gates = affine(
        F.concatenate(x, h, axis=1), (4, state_size), w_init=w_init, b_init=b_init,
        fix_parameters=fix_parameters,
    )  # fmt: skip
    i, o, f, g = F.split(gates, axis=1)
    c = F.sigmoid(f) * c + F.sigmoid(i) * F.tanh(g)
    return F.sigmoid(o) * F.tanh(c), c


class LSTMCell:
    """lstm_cell with states that it keeps from call to call.

    Args:
        batch_size, state_size: shape of the states.
        h, c: states to begin with; None for zeros.
        name: of the scope of its parameters.

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> cell = PF.LSTMCell(2, 6)
    >>> for x in (nn.Variable((2, 3)), nn.Variable((2, 3))):
    ...     h = cell(x)
    >>> h.shape, cell.c.shape
    ((2, 6), (2, 6))
    """

    def __init__(
        self, batch_size: int, state_size: int, h: Any = None, c: Any = None, name: Any = None
    ) -> None:
        self.batch_size = batch_size
        self.state_size = state_size
        self.name = name
        self.h = self._zeros() if h is None else h
        self.c = self._zeros() if c is None else c

    def _zeros(self) -> Any:
        state = Variable((self.batch_size, self.state_size))
        state.data.zero()
        return state

    def reset_state(self) -> None:
        """Begin another sequence: states are zeros that no step led to."""
        self.h, self.c = self._zeros(), self._zeros()

    def __call__(
        self,
        x: Any,
        w_init: Initializer = None,
        b_init: Initializer = None,
        fix_parameters: bool = False,
    ) -> Any:
        """The next h; see lstm_cell."""
        self.h, self.c = lstm_cell(
            x, self.h, self.c, self.state_size, w_init, b_init, fix_parameters, name=self.name
        )
        return self.h
