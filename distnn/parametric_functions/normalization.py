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

_PARAMETERS = [
    ("beta", "Shift", "(1, C, 1, ...)", True),
    ("gamma", "Scale", "(1, C, 1, ...)", True),
    ("mean", "Running mean", "(1, C, 1, ...)", False),
    ("var", "Running variance", "(1, C, 1, ...)", False),
]


@parametric_function_api("bn", _PARAMETERS)
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
    name = "batch_normalization"
    kept = axes_of(name, axes, len(inp.shape))
    parameters = _parameters(name, inp, kept, fix_parameters, param_init, no_scale, no_bias)
    return F.batch_normalization(inp, *parameters, kept, decay_rate, eps, batch_stat, output_stat)


@parametric_function_api("bn", _PARAMETERS)
def fused_batch_normalization(
    inp: Any,
    z: Any = None,
    axes: Sequence[int] = (1,),
    decay_rate: float = 0.9,
    eps: float = 1e-5,
    batch_stat: bool = True,
    nonlinearity: str = "relu",
    output_stat: bool = False,
    fix_parameters: bool = False,
    param_init: Mapping[str, Initializer] | None = None,
    no_scale: bool = False,
    no_bias: bool = False,
) -> Any:
    """Batch normalization, addition of z and relu in one function.

    Its parameters have the names of batch_normalization's, so a file of one fits the other.

    Args:
        inp: (N, C, ...) array.
        z, axes, decay_rate, eps, batch_stat, nonlinearity, output_stat: see
            F.fused_batch_normalization.
        fix_parameters, param_init, no_scale, no_bias: see batch_normalization.

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> h, shortcut = nn.Variable((8, 3, 4, 4)), nn.Variable((8, 3, 4, 4))
    >>> PF.fused_batch_normalization(h, shortcut).shape
    (8, 3, 4, 4)
    """
    name = "fused_batch_normalization"
    kept = axes_of(name, axes, len(inp.shape))
    parameters = _parameters(name, inp, kept, fix_parameters, param_init, no_scale, no_bias)
    return F.fused_batch_normalization(
        inp, *parameters, z, kept, decay_rate, eps, batch_stat, nonlinearity, output_stat
    )


@parametric_function_api("bn", _PARAMETERS)
def sync_batch_normalization(
    inp: Any,
    comm: Any,
    group: str = "world",
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
    """Batch normalization over the batches of all ranks.

    Its parameters have the names of batch_normalization's, so a file of one fits the other.

    Args:
        inp: (N, C, ...) array of this rank.
        comm, group, axes, decay_rate, eps, batch_stat, output_stat: see F.sync_batch_normalization,
            which also says what the gradients of beta and gamma are.
        fix_parameters, param_init, no_scale, no_bias: see batch_normalization.

    >>> import distnn as nn, distnn.communicators as C, distnn.parametric_functions as PF
    >>> comm = C.DataParallelCommunicator()
    >>> comm.init()
    >>> PF.sync_batch_normalization(nn.Variable((8, 3, 4, 4)), comm).shape
    (8, 3, 4, 4)
    """
    name = "sync_batch_normalization"
    kept = axes_of(name, axes, len(inp.shape))
    parameters = _parameters(name, inp, kept, fix_parameters, param_init, no_scale, no_bias)
    return F.sync_batch_normalization(
        inp, *parameters, comm, group, kept, decay_rate, eps, batch_stat, output_stat
    )


def _parameters(
    function: str,
    inp: Any,
    axes: Sequence[int],
    fix_parameters: bool,
    param_init: Mapping[str, Initializer] | None,
    no_scale: bool,
    no_bias: bool,
) -> tuple[Any, Any, Any, Any]:
    """beta, gamma, mean and var of the current scope."""
    init: dict[str, Initializer] = {
        "beta": ConstantInitializer(0),
        "gamma": ConstantInitializer(1),
        "mean": ConstantInitializer(0),
        "var": ConstantInitializer(1),
    }
    unknown = set(param_init or {}) - set(init)
    if unknown:
        raise ParameterError(
            f"[{function}] param_init has {sorted(unknown)}; the parameters are {sorted(init)}"
        )
    init.update(param_init or {})
    shape = tuple(n if i in axes else 1 for i, n in enumerate(inp.shape))
    trained = not fix_parameters
    beta = gamma = None
    if not no_bias:
        beta = get_parameter_or_create("beta", shape, init["beta"], True, trained)
    if not no_scale:
        gamma = get_parameter_or_create("gamma", shape, init["gamma"], True, trained)
    mean = get_parameter_or_create("mean", shape, init["mean"], False)
    var = get_parameter_or_create("var", shape, init["var"], False)
    return beta, gamma, mean, var
