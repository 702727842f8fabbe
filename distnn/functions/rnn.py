"""Elman's recurrent network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..calling import function_api
from ..errors import ArgumentError
from ..function import Spec
from .recurrence import Recurrence, at, over_steps, stacked

_NONLINEARITIES = ("tanh", "relu")


@dataclass(frozen=True)
class Rnn(Recurrence):
    """Of one direction of a layer: all states h' = tanh(w [x_t; h] + b), or relu of it.

    x (T, B, I), h (B, H), w (H, I + H), b (H,) or None -> y (T, B, H)
    """

    nonlinearity: str
    reverse: bool

    cpu = "recurrent.Rnn"

    def setup(self, x: Spec, h: Spec, w: Spec, b: Spec | None = None) -> Spec:
        return Spec((*x.shape[:2], h.shape[1]), x.dtype)

    def forward(self, xp: Any, x: Any, h: Any, w: Any, b: Any = None, *, out: Any = None) -> Any:
        wx, wh = self.split(xp, w, x.shape[2])
        y = xp.empty((*x.shape[:2], h.shape[1]), x.dtype) if out is None else out
        y[...] = self.product(xp, x, wx)
        if b is not None:
            y += b
        for t in self.steps(x):
            z = xp.matmul(h, wh.T)
            z += y[t]
            y[t] = xp.tanh(z) if self.nonlinearity == "tanh" else xp.maximum(z, 0)
            h = y[t]
        return y

    def grad_x(self, xp: Any, dy: Any, x: Any, w: Any, y: Any) -> Any:
        wx, wh = self.split(xp, w, x.shape[2])
        return self.of_input(xp, self._back(xp, dy, y, wh)[0], wx)

    def grad_h(self, xp: Any, dy: Any, x_shape: Any, w: Any, y: Any) -> Any:
        return self._back(xp, dy, y, self.split(xp, w, x_shape[2])[1])[1]

    def grad_w(self, xp: Any, dy: Any, x: Any, h: Any, w: Any, y: Any) -> Any:
        dz = self._back(xp, dy, y, self.split(xp, w, x.shape[2])[1])[0]
        return self.of_weight(xp, dz, x, dz, self.before(xp, h, y), w.shape)

    def grad_b(self, xp: Any, dy: Any, x_shape: Any, w: Any, y: Any) -> Any:
        return xp.sum(self._back(xp, dy, y, self.split(xp, w, x_shape[2])[1])[0], (0, 1))

    def _back(self, xp: Any, dy: Any, y: Any, wh: Any) -> tuple[Any, Any]:
        """dz of all steps, and dh before the first one."""
        if self.nonlinearity == "tanh":
            slope = 1 - y * y
        else:
            slope = xp.greater(y, xp.constant(0, y.shape, y))
        dh = None
        dz: dict[int, Any] = {}
        for t in self.steps(y)[::-1]:
            dh = at(xp, dy, t) if dh is None else at(xp, dy, t) + dh
            dz[t] = dh * at(xp, slope, t)
            dh = xp.matmul(dz[t], wh)
        return over_steps(xp, dz), dh

    def backward(
        self, xp: Any, need: Any, dy: Any, x: Any, h: Any, w: Any, y: Any, *, out: Any
    ) -> None:
        dz, dh = self._back(xp, dy, y, self.split(xp, w, x.shape[2])[1])
        self.give(xp, need, out, dz, dh, x, h, w, y)

    def give(
        self, xp: Any, need: Any, out: Any, dz: Any, dh: Any, x: Any, h: Any, w: Any, y: Any
    ) -> None:
        """Write the gradients, made of those of all steps and of dh before the first one."""
        if need.h:
            out.h[...] = dh
        if need.b:
            out.b[...] = xp.sum(dz, (0, 1))
        self.write(xp, need, out, dz, x, dz, h, y, w)


@function_api
def rnn(
    x: Any,
    h: Any,
    weight_l0: Any,
    weight: Any = None,
    bias: Any = None,
    num_layers: int = 1,
    nonlinearity: str = "tanh",
    dropout: float | None = None,
    bidirectional: bool = False,
    training: bool = True,
) -> Any:
    """Elman's recurrent network over all steps of a sequence, in one or several layers.

        h' = tanh(W x_t + U h + b), or max(W x_t + U h + b, 0)

    Args:
        x: (T, B, I): steps, batch, inputs; one step or more.
        h: (L, D, B, H) states at the begin; D is 2 if bidirectional, else 1.
        weight_l0: (D, H, I + H) of the first layer: [W, U].
        weight: (L - 1, D, H, D H + H) of the layers above; None for one layer.
        bias: (L, D, H) or None.
        num_layers, dropout, bidirectional, training: see lstm.
        nonlinearity: "tanh" or "relu".
    Returns: y (T, B, D H), and h (L, D, B, H) after the last step.
    Raises: ShapeError where a shape does not fit x and h.

    Elman, "Finding structure in time", Cognitive Science 14, 1990.

    >>> import distnn as nn, distnn.functions as F
    >>> h = nn.Variable((1, 1, 2, 6))
    >>> y, h = F.rnn(nn.Variable((5, 2, 3)), h, nn.Variable((1, 6, 3 + 6)))
    >>> y.shape, h.shape
    ((5, 2, 6), (1, 1, 2, 6))
    """
    if nonlinearity not in _NONLINEARITIES:
        raise ArgumentError(
            f"[rnn] nonlinearity is {nonlinearity!r}; pass one of {_NONLINEARITIES}"
        )

    def layer(reverse: bool) -> Any:
        return Rnn.of(nonlinearity, reverse)

    return stacked(
        "rnn", layer, (), (), x, {"h": h}, weight_l0, weight, bias, num_layers, dropout,
        bidirectional, training,
    )  # fmt: skip
