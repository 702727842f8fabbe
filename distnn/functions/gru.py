"""Gated recurrent units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..calling import function_api
from ..function import Spec
from .recurrence import SIGMOID, Recurrence, at, gate, over_steps, stacked
from .shaping import Concatenate

_GATES = 3


@dataclass(frozen=True)
class Gru(Recurrence):
    """Of one direction of a layer: all states y (T, B, H).

    x (T, B, I), h (B, H), w (3, H, I + H), b (4, H) or None. With W, U the parts of w for x and h:
    r, z = sigmoid(W x_t + U h + b),  q = U_n h + b_hn,  n = tanh(W_n x_t + b_in + r q),
    h' = (1 - z) n + z h.
    """

    reverse: bool

    saved = ("gates", "q")
    cpu = "recurrent.Gru"

    def setup(self, x: Spec, h: Spec, w: Spec, b: Spec | None = None) -> Any:
        state = Spec((*x.shape[:2], h.shape[1]), x.dtype)
        return state, Spec((*x.shape[:2], _GATES * h.shape[1]), x.dtype), state

    def forward(self, xp: Any, x: Any, h: Any, w: Any, b: Any = None, *, out: Any = None) -> Any:
        if out is None:
            out = tuple(xp.empty(s.shape, s.dtype) for s in self.setup(x, h, w))
        y, gates, q = out
        wx, wh = self.split(xp, w, x.shape[2])
        gates[...] = self.product(xp, x, wx)
        if b is not None:
            gates += b[:_GATES].reshape(-1)
        for t in self.steps(x):
            u = xp.matmul(h, wh.T)
            r_z, n = slice(0, 2 * h.shape[1]), slice(2 * h.shape[1], None)
            q[t] = u[:, n] if b is None else u[:, n] + b[_GATES]
            gates[t, :, r_z] = xp.call(SIGMOID, u[:, r_z] + gates[t, :, r_z])
            r, z = (gate(xp, gates[t], k, _GATES) for k in range(2))
            gates[t, :, n] = xp.tanh(gates[t, :, n] + r * q[t])
            y[t] = gates[t, :, n] + z * (h - gates[t, :, n])
            h = y[t]
        return out

    # One rule for each input; all of them are made of dz, which is found going back in time.

    def grad_x(self, xp: Any, dy: Any, x: Any, h: Any, w: Any, b: Any, y: Any) -> Any:
        dz, _, _ = self._by_rules(xp, dy, x, h, w, b, y)
        return self.of_input(xp, dz, self.split(xp, w, x.shape[2])[0])

    def grad_h(self, xp: Any, dy: Any, x: Any, h: Any, w: Any, b: Any, y: Any) -> Any:
        return self._by_rules(xp, dy, x, h, w, b, y)[2]

    def grad_w(self, xp: Any, dy: Any, x: Any, h: Any, w: Any, b: Any, y: Any) -> Any:
        dz, dzh, _ = self._by_rules(xp, dy, x, h, w, b, y)
        return self.of_weight(xp, dz, x, dzh, self.before(xp, h, y), w.shape)

    def grad_b(self, xp: Any, dy: Any, x: Any, h: Any, w: Any, b: Any, y: Any) -> Any:
        dz, dzh, _ = self._by_rules(xp, dy, x, h, w, b, y)
        return self._of_bias(xp, dz, dzh, b.shape)

    def _of_bias(self, xp: Any, dz: Any, dzh: Any, shape: Any) -> Any:
        parts = [xp.sum(d, (0, 1)) for d in (dz, gate(xp, dzh, 2, _GATES))]
        return xp.reshape(xp.call(Concatenate.of(0), *parts), shape)

    def _by_rules(
        self, xp: Any, dy: Any, x: Any, h: Any, w: Any, b: Any, y: Any
    ) -> tuple[Any, Any, Any]:
        """dz, dzh and dh; the gates are computed again, to depend on all that they come of."""
        wx, wh = self.split(xp, w, x.shape[2])
        of_x, of_h = self.product(xp, x, wx), self.product(xp, self.before(xp, h, y), wh)
        x_r, x_z, x_n = (gate(xp, of_x, k, _GATES) for k in range(_GATES))
        h_r, h_z, q = (gate(xp, of_h, k, _GATES) for k in range(_GATES))
        if b is not None:
            width = b.shape[1]
            b_r, b_z, b_n, b_q = (
                xp.broadcast(
                    xp.reshape(xp.slice(b, (k, 0), (k + 1, width)), (1, 1, width)), q.shape
                )
                for k in range(_GATES + 1)
            )
            x_r, x_z, x_n, q = x_r + b_r, x_z + b_z, x_n + b_n, q + b_q
        r, z = xp.call(SIGMOID, x_r + h_r), xp.call(SIGMOID, x_z + h_z)
        return self._back(xp, dy, (r, z, xp.tanh(x_n + r * q)), q, h, y, wh)

    def _back(
        self, xp: Any, dy: Any, gates: Any, q: Any, h: Any, y: Any, wh: Any
    ) -> tuple[Any, Any, Any]:
        """Gradients of W x and of U h of all steps, and of h before the first one."""
        r, z, n = gates
        # What dh is multiplied with for the gates of a step.
        to_n = (1 - z) * (1 - n * n)
        to_r, to_z = to_n * q * r * (1 - r), (self.before(xp, h, y) - n) * z * (1 - z)
        to_q = to_n * r
        dh = None
        dz: dict[int, Any] = {}
        dzh: dict[int, Any] = {}
        for t in self.steps(y)[::-1]:
            dh = at(xp, dy, t) if dh is None else at(xp, dy, t) + dh
            d_r, d_z, d_n, d_q = (dh * at(xp, a, t) for a in (to_r, to_z, to_n, to_q))
            dz[t] = xp.call(Concatenate.of(1), d_r, d_z, d_n)
            dzh[t] = xp.call(Concatenate.of(1), d_r, d_z, d_q)
            dh = dh * at(xp, z, t) + xp.matmul(dzh[t], wh)
        return over_steps(xp, dz), over_steps(xp, dzh), dh

    def backward(
        self, xp: Any, need: Any, dy: Any, x: Any, h: Any, w: Any, y: Any, gates: Any, q: Any,
        *, out: Any,
    ) -> None:  # fmt: skip
        parts = [gate(xp, gates, k, _GATES) for k in range(_GATES)]
        wh = self.split(xp, w, x.shape[2])[1]
        dz, dzh, dh = self._back(xp, dy, parts, q, h, y, wh)
        self.give(xp, need, out, dz, dzh, dh, x, h, w, y)

    def give(
        self,
        xp: Any,
        need: Any,
        out: Any,
        dz: Any,
        dzh: Any,
        dh: Any,
        x: Any,
        h: Any,
        w: Any,
        y: Any,
    ) -> None:
        """Write the gradients, made of those of all steps and of dh before the first one."""
        if need.h:
            out.h[...] = dh
        if need.b:
            out.b[...] = self._of_bias(xp, dz, dzh, out.b.shape)
        self.write(xp, need, out, dz, x, dzh, h, y, w)


@function_api
def gru(
    x: Any,
    h: Any,
    weight_l0: Any,
    weight: Any = None,
    bias: Any = None,
    num_layers: int = 1,
    dropout: float | None = None,
    bidirectional: bool = False,
    training: bool = True,
) -> Any:
    """Gated recurrent units over all steps of a sequence, in one or several layers.

        r, z = sigmoid(W x_t + U h + b)  (W, U, b of each)
        n = tanh(W_n x_t + b_in + r (U_n h + b_hn)),  h' = (1 - z) n + z h

    Args:
        x: (T, B, I): steps, batch, inputs; one step or more.
        h: (L, D, B, H) states at the begin; D is 2 if bidirectional, else 1.
        weight_l0: (D, 3, H, I + H) of the first layer: [W, U] of r, z and n.
        weight: (L - 1, D, 3, H, D H + H) of the layers above; None for one layer.
        bias: (L, D, 4, H) of r, z, in and hn; or None.
        num_layers, dropout, bidirectional, training: see lstm.
    Returns: y (T, B, D H), and h (L, D, B, H) after the last step.
    Raises: ShapeError where a shape does not fit x and h.

    Cho et al., "Learning phrase representations using RNN encoder-decoder", arXiv:1406.1078.

    >>> import distnn as nn, distnn.functions as F
    >>> h = nn.Variable((1, 1, 2, 6))
    >>> y, h = F.gru(nn.Variable((5, 2, 3)), h, nn.Variable((1, 3, 6, 3 + 6)))
    >>> y.shape, h.shape
    ((5, 2, 6), (1, 1, 2, 6))
    """
    return stacked(
        "gru", Gru.of, (_GATES,), (_GATES + 1,), x, {"h": h}, weight_l0, weight, bias,
        num_layers, dropout, bidirectional, training,
    )  # fmt: skip
