"""Batch normalization with its parameters and running statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import functions as F
from ..errors import ParameterError
from ..functions.shapes import axes_of
from ..initializer import ConstantInitializer
from ..parameter import Initializer, get_parameter_or_create
from .scope import parametric_function_api


@parametric_function_api(
    "bn",
    [
        ("beta", "Shift", "(1, C, 1, ...)", True),
        ("gamma", "Scale", "(1, C, 1, ...)", True),
        ("mean", "Running mean", "(1, C, 1, ...)", False),
        ("var", "Running variance", "(1, C, 1, ...)", False),
    ],
)
def batch_normalization(
    inp: Any,
    axes: Sequence[int] = (1,),
    decay_rate: float = 0.9,
    eps: float = 1e-5,
    batch_stat: bool = True,
    output_stat: bool = False,
    fix_parameters: bool = False,
    param_init: Mapping[str, Initializer] | None = None,
    no_scale: bool = False,
    no_bias: bool = False,
) -> Any:
    """Batch normalization with shift beta, scale gamma and running statistics.

    Args:
        inp: (N, C, ...) array.
        axes, decay_rate, eps, batch_stat, output_stat: see F.batch_normalization.
        fix_parameters: compute no gradients of beta and gamma in this call.
        param_init: initializers by parameter name; default beta 0, gamma 1, mean 0, var 1.
        no_scale, no_bias: do without gamma, without beta.

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> PF.batch_normalization(nn.Variable((8, 3, 4, 4))).shape
    (8, 3, 4, 4)
    """
    init: dict[str, Initializer] = {
        "beta": ConstantInitializer(0),
        "gamma": ConstantInitializer(1),
        "mean": ConstantInitializer(0),
        "var": ConstantInitializer(1),
    }
    unknown = set(param_init or {}) - set(init)
    if unknown:
        raise ParameterError(
            f"[batch_normalization] param_init has {sorted(unknown)}; the parameters are "
            f"{sorted(init)}"
        )
    init.update(param_init or {})
    kept = axes_of("batch_normalization", axes, len(inp.shape))
    shape = tuple(n if i in kept else 1 for i, n in enumerate(inp.shape))
    trained = not fix_parameters
    beta = gamma = None
    if not no_bias:
        beta = get_parameter_or_create("beta", shape, init["beta"], True, trained)
    if not no_scale:
        gamma = get_parameter_or_create("gamma", shape, init["gamma"], True, trained)
    mean = get_parameter_or_create("mean", shape, init["mean"], False)
    var = get_parameter_or_create("var", shape, init["var"], False)
    return F.batch_normalization(
        inp, beta, gamma, mean, var, kept, decay_rate, eps, batch_stat, output_stat
    )
