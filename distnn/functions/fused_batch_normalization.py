"""Batch normalization, an addition and relu in one function: what ends a residual block.

On a GPU it is one pass over memory for the statistics and one for the rest. On the CPU it has the
bits of the functions it stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..calling import function_api
from ..errors import ArgumentError, ShapeError
from ..formula import Formula
from ..formula_chain import Chain, Joined, Link
from ..function import Spec
from .activation import relu
from .arithmetic import add2
from .batch_normalization import BatchNormalization, FixedNormalization, checked
from .shapes import shape_of

_RELU = Link("r", Formula("maximum(y, 0)", ("y",), ()).tree)
_ADD_RELU = Link("r", Formula("maximum(y + z, 0)", ("y", "z"), ()).tree)
_PASSED = Formula("where(y > 0, dy, 0)", ("y", "dy"), ())
_COPY = Link("dz", Formula("passed", ("passed",), ()).tree)
# What follows batch normalization, and what its gradient passes first; without and with z.
_FOLLOWING = (Chain([_RELU], ("y",), (), ("r",)), Chain([_ADD_RELU], ("y", "z"), (), ("r",)))
_PASSING = [
    Chain([Link("passed", _PASSED.tree), *copy], ("y", "dy"), (), ("passed", *outputs))
    for copy, outputs in (((), ()), ((_COPY,), ("dz",)))
]


@dataclass(frozen=True)
class FusedBatchNormalization(BatchNormalization):
    """y = max(batch normalization of x + z, 0); z may be None."""

    cuda = "batch_normalization.FusedBatchNormalization"

    def setup(
        self,
        x: Spec,
        beta: Spec | None,
        gamma: Spec | None,
        mean: Spec,
        variance: Spec,
        z: Spec | None = None,
    ) -> tuple[Spec, ...]:
        return super().setup(x, beta, gamma, mean, variance)

    def forward(
        self,
        xp: Any,
        x: Any,
        beta: Any,
        gamma: Any,
        mean: Any,
        variance: Any,
        z: Any = None,
        *,
        decay_rate: float,
        eps: float,
        out: Any = None,
    ) -> Any:
        if out is None:
            specs = self.setup(x, beta, gamma, mean, variance, z)
            out = tuple(xp.empty(spec.shape, spec.dtype) for spec in specs)
        others = () if z is None else (z,)
        _, *results = self.forward_joined(
            xp, x, beta, gamma, mean, variance, decay_rate=decay_rate, eps=eps, out=out,
            joined=Joined(_FOLLOWING[len(others)], others, (), out[:1]),
        )  # fmt: skip
        return (out[0], *results)

    def joins(self, chain: Chain) -> bool:
        return False

    def joins_backward(self, chain: Chain) -> bool:
        return False

    # Gradients are those of batch normalization for the dy of positive y.

    def _passed(self, xp: Any, dy: Any, y: Any) -> Any:
        zero = xp.constant(0, dy.shape, dy)
        return xp.where(xp.greater(y, zero), dy, zero)

    def grad_x(  # type: ignore[override]
        self,
        xp: Any,
        dy: Any,
        dbatch_mean: Any,
        dbatch_variance: Any,
        y: Any,
        x: Any,
        gamma: Any,
        batch_mean: Any,
        batch_variance: Any,
        eps: float,
    ) -> Any:
        dy = self._passed(xp, dy, y)
        return super().grad_x(
            xp, dy, dbatch_mean, dbatch_variance, x, gamma, batch_mean, batch_variance, eps
        )

    def grad_beta(self, xp: Any, dy: Any, y: Any) -> Any:  # type: ignore[override]
        return super().grad_beta(xp, self._passed(xp, dy, y))

    def grad_gamma(  # type: ignore[override]
        self, xp: Any, dy: Any, y: Any, x: Any, batch_mean: Any, batch_variance: Any, eps: float
    ) -> Any:
        dy = self._passed(xp, dy, y)
        return super().grad_gamma(xp, dy, x, batch_mean, batch_variance, eps)

    def grad_z(self, xp: Any, dy: Any, y: Any) -> Any:
        return self._passed(xp, dy, y)

    def backward(  # type: ignore[override]
        self,
        xp: Any,
        need: Any,
        dy: Any,
        dbatch_mean: Any,
        dbatch_variance: Any,
        x: Any,
        gamma: Any,
        y: Any,
        centre: Any,
        inverse_deviation: Any,
        *,
        out: Any,
    ) -> None:
        reads = (dbatch_mean, dbatch_variance, x, gamma, centre, inverse_deviation)
        if dy is None:
            if need.z:
                out.z[...] = 0
            super().backward(xp, need, None, *reads, out=out)
        elif need.x or need.beta or need.gamma:
            outs = (out.z,) if need.z else ()
            joined = Joined(_PASSING[len(outs)], (y, dy), (), outs)
            self.backward_joined(xp, need, None, *reads, joined=joined, out=out)
        else:
            xp.evaluate(_PASSED, {"y": y, "dy": dy}, {}, out.z)


@function_api
def fused_batch_normalization(
    x: Any,
    beta: Any,
    gamma: Any,
    mean: Any,
    variance: Any,
    z: Any = None,
    axes: Sequence[int] = (1,),
    decay_rate: float = 0.9,
    eps: float = 1e-5,
    batch_stat: bool = True,
    nonlinearity: str = "relu",
    output_stat: bool = False,
) -> Any:
    """Batch normalization, addition and relu: y = max(batch_normalization(x) + z, 0).

    Args:
        x: (N, C, ...) array.
        beta, gamma, mean, variance, axes, decay_rate, eps, batch_stat: see batch_normalization.
        z: array of x's shape, added before the nonlinearity; None adds nothing.
        nonlinearity: "relu".
        output_stat: return (y, batch mean, batch variance).

    >>> import distnn as nn, distnn.functions as F
    >>> stats = [nn.Variable((1, 3, 1, 1)) for _ in range(4)]
    >>> x, shortcut = nn.Variable((8, 3, 4, 4)), nn.Variable((8, 3, 4, 4))
    >>> F.fused_batch_normalization(x, *stats, shortcut).shape
    (8, 3, 4, 4)
    """
    name = "fused_batch_normalization"
    where, decay_rate, eps = checked(
        name, x, mean, variance, axes, decay_rate, eps, batch_stat, output_stat
    )
    if nonlinearity != "relu":
        raise ArgumentError(f"[{name}] nonlinearity is {nonlinearity!r}; pass 'relu'")
    if z is not None and shape_of(name, "z", z) != x.shape:
        raise ShapeError(f"[{name}] z has shape {z.shape} but x {x.shape}; pass one of x's shape")
    if not batch_stat:
        y = FixedNormalization.of(where)(x, beta, gamma, mean, variance, eps=eps)
        return relu(y if z is None else add2(y, z))
    function = FusedBatchNormalization.of(where)
    results = function(x, beta, gamma, mean, variance, z, decay_rate=decay_rate, eps=eps)
    return results if output_stat else results[0]
