"""Long short-term memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..calling import function_api
from ..function import Spec
from .recurrence import SIGMOID, Recurrence, at, gate, over_steps, stacked
from .shaping import Concatenate

_GATES = 4


@dataclass(frozen=True)
class Lstm(Recurrence):
    """Of one direction of a layer: all hidden states y and all cell states, (T, B, H) each.

    x (T, B, I), h and c (B, H), w (4, H, I + H), b (4, H) or None. With gates i, f, g, o of
    w [x_t; h] + b:  c' = f c + i g,  h' = o tanh(c').
    """

    reverse: bool

    outputs = ("y", "cell")
    saved = ("gates",)
    cpu = "recurrent.Lstm"

    def setup(self, x: Spec, h: Spec, c: Spec, w: Spec, b: Spec | None = None) -> Any:
        state = Spec((*x.shape[:2], h.shape[1]), x.dtype)
        return state, state, Spec((*x.shape[:2], _GATES * h.shape[1]), x.dtype)

    def forward(
        self, xp: Any, x: Any, h: Any, c: Any, w: Any, b: Any = None, *, out: Any = None
    ) -> Any:
        if out is None:
            out = tuple(xp.empty(s.shape, s.dtype) for s in self.setup(x, h, c, w))
        y, cell, gates = out
        wx, wh = self.split(xp, w, x.shape[2])
        gates[...] = self.product(xp, x, wx)
        if b is not None:
            gates += b.reshape(-1)
        for t in self.steps(x):
            z = xp.matmul(h, wh.T)
            z += gates[t]
            gates[t] = xp.call(SIGMOID, z)
            i, f, g, o = (gate(xp, gates[t], k, _GATES) for k in range(_GATES))
            xp.tanh(gate(xp, z, 2, _GATES), out=g)
            cell[t] = f * c + i * g
            y[t] = o * xp.tanh(cell[t])
            h, c = y[t], cell[t]
        return out

    # One rule for each input; all of them are made of dz, which is found going back in time.

    def grad_x(
        self, xp: Any, dy: Any, dcell: Any, x: Any, h: Any, c: Any, w: Any, b: Any, y: Any,
        cell: Any,
    ) -> Any:  # fmt: skip
        dz, _, _ = self._by_rules(xp, dy, dcell, x, h, c, w, b, y, cell)
        return self.of_input(xp, dz, self.split(xp, w, x.shape[2])[0])

    def grad_h(
        self, xp: Any, dy: Any, dcell: Any, x: Any, h: Any, c: Any, w: Any, b: Any, y: Any,
        cell: Any,
    ) -> Any:  # fmt: skip
        return self._by_rules(xp, dy, dcell, x, h, c, w, b, y, cell)[1]

    def grad_c(
        self, xp: Any, dy: Any, dcell: Any, x: Any, h: Any, c: Any, w: Any, b: Any, y: Any,
        cell: Any,
    ) -> Any:  # fmt: skip
        return self._by_rules(xp, dy, dcell, x, h, c, w, b, y, cell)[2]

    def grad_w(
        self, xp: Any, dy: Any, dcell: Any, x: Any, h: Any, c: Any, w: Any, b: Any, y: Any,
        cell: Any,
    ) -> Any:  # fmt: skip
        dz, _, _ = self._by_rules(xp, dy, dcell, x, h, c, w, b, y, cell)
        return self.of_weight(xp, dz, x, dz, self.before(xp, h, y), w.shape)

    def grad_b(
        self, xp: Any, dy: Any, dcell: Any, x: Any, h: Any, c: Any, w: Any, b: Any, y: Any,
        cell: Any,
    ) -> Any:  # fmt: skip
        dz, _, _ = self._by_rules(xp, dy, dcell, x, h, c, w, b, y, cell)
        return xp.reshape(xp.sum(dz, (0, 1)), b.shape)

    def _by_rules(
        self, xp: Any, dy: Any, dcell: Any, x: Any, h: Any, c: Any, w: Any, b: Any, y: Any,
        cell: Any,
    ) -> tuple[Any, Any, Any]:  # fmt: skip
        """dz, dh and dc; the gates are computed again, so as to depend on all that they come of."""
        wx, wh = self.split(xp, w, x.shape[2])
        z = self.product(xp, x, wx) + self.product(xp, self.before(xp, h, y), wh)
        if b is not None:
            bias = xp.reshape(b, (1, 1, z.shape[2]))
            z = z + xp.broadcast(bias, z.shape)
        i, f, g, o = (gate(xp, z, k, _GATES) for k in range(_GATES))
        i, f, o = (xp.call(SIGMOID, a) for a in (i, f, o))
        return self._back(xp, dy, dcell, (i, f, xp.tanh(g), o), c, cell, wh)

    def _back(
        self, xp: Any, dy: Any, dcell: Any, gates: Any, c: Any, cell: Any, wh: Any
    ) -> tuple[Any, Any, Any]:
        """Back in time: of each step dh and dc, and of these dz; and dh and dc before the first."""
        i, f, g, o = gates
        t_cell = xp.tanh(cell)
        to_cell = o * (1 - t_cell * t_cell)
        # What dc, and for the last one dh, is multiplied with for the gates of a step.
        to_gates = (
            g * i * (1 - i), self.before(xp, c, cell) * f * (1 - f), i * (1 - g * g),
            t_cell * o * (1 - o),
        )  # fmt: skip
        dh = dc = None
        dz: dict[int, Any] = {}
        for t in self.steps(cell)[::-1]:
            dh = at(xp, dy, t) if dh is None else at(xp, dy, t) + dh
            dc = at(xp, dcell, t) if dc is None else at(xp, dcell, t) + dc
            dc = dc + dh * at(xp, to_cell, t)
            outer = (dc, dc, dc, dh)
            parts = [d * at(xp, factor, t) for d, factor in zip(outer, to_gates, strict=True)]
            dz[t] = xp.call(Concatenate.of(1), *parts)
            dh = xp.matmul(dz[t], wh)
            dc = dc * at(xp, f, t)
        return over_steps(xp, dz), dh, dc

    def backward(
        self, xp: Any, need: Any, dy: Any, dcell: Any, x: Any, h: Any, c: Any, w: Any, y: Any,
        cell: Any, gates: Any, *, out: Any,
    ) -> None:  # fmt: skip
        dy, dcell = (xp.zeros(y.shape, y.dtype) if d is None else d for d in (dy, dcell))
        parts = [gate(xp, gates, k, _GATES) for k in range(_GATES)]
        wh = self.split(xp, w, x.shape[2])[1]
        dz, dh, dc = self._back(xp, dy, dcell, parts, c, cell, wh)
        self.give(xp, need, out, dz, dh, dc, x, h, w, y)

    def give(
        self, xp: Any, need: Any, out: Any, dz: Any, dh: Any, dc: Any, x: Any, h: Any, w: Any,
        y: Any,
    ) -> None:  # fmt: skip
        """Write the gradients, made of dz of all steps and of dh and dc before the first one."""
        if need.h:
            out.h[...] = dh
        if need.c:
            out.c[...] = dc
        if need.b:
            out.b[...] = xp.sum(dz, (0, 1)).reshape(out.b.shape)
        self.write(xp, need, out, dz, x, dz, h, y, w)


@function_api
def lstm(
    x: Any,
    h: Any,
    c: Any,
    weight_l0: Any,
    weight: Any = None,
    bias: Any = None,
    num_layers: int = 1,
    dropout: float | None = None,
    bidirectional: bool = False,
    training: bool = True,
) -> Any:
    """Long short-term memory over all steps of a sequence, in one or several layers.

        i, f, o = sigmoid(W x_t + U h + b),  g = tanh(W x_t + U h + b)  (W, U, b of each)
        c' = f c + i g,  h' = o tanh(c')

    Args:
        x: (T, B, I): steps, batch, inputs; one step or more.
        h, c: (L, D, B, H) states at the begin; D is 2 if bidirectional, else 1.
        weight_l0: (D, 4, H, I + H) of the first layer: [W, U] of i, f, g and o.
        weight: (L - 1, D, 4, H, D H + H) of the layers above; None for one layer.
        bias: (L, D, 4, H) or None.
        num_layers: L; each takes the y of the one below.
        dropout: probability with which, in training, a y between two layers is set to 0.
        bidirectional: a second direction goes from the last step to the first.
        training: whether dropout is applied.
    Returns: y (T, B, D H), and h and c (L, D, B, H) after the last step.
    Raises: ShapeError where a shape does not fit x and h.

    Hochreiter & Schmidhuber, "Long short-term memory", Neural Computation 9, 1997.

    >>> import distnn as nn, distnn.functions as F
    >>> h, c = nn.Variable((1, 1, 2, 6)), nn.Variable((1, 1, 2, 6))
    >>> y, h, c = F.lstm(nn.Variable((5, 2, 3)), h, c, nn.Variable((1, 4, 6, 3 + 6)))
    >>> y.shape, h.shape
    ((5, 2, 6), (1, 1, 2, 6))
    """
    return stacked(
        "lstm", Lstm.of, (_GATES,), (_GATES,), x, {"h": h, "c": c}, weight_l0, weight, bias,
        num_layers, dropout, bidirectional, training,
    )  # fmt: skip
