"""Normalizations with their parameters, and with running statistics those of batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import functions as F
from ..errors import ParameterError
from ..functions.shapes import axes_of, axis_of
from ..initializer import ConstantInitializer
from ..parameter import Initializer, get_parameter_or_create
from .scope import parametric_function_api

_PARAMETERS = [
    ("beta", "Shift", "(1, C, 1, ...)", True),
    ("gamma", "Scale", "(1, C, 1, ...)", True),
    ("mean", "Running mean", "(1, C, 1, ...)", False),
    ("var", "Running variance", "(1, C, 1, ...)", False),
]

_SHIFT_AND_SCALE = [
    ("beta", "Shift", "(1, C, 1, ...), or of a layer (1, ...)", True),
    ("gamma", "Scale", "(1, C, 1, ...), or of a layer (1, ...)", True),
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


@parametric_function_api("layer_normalization", _SHIFT_AND_SCALE)
def layer_normalization(
    inp: Any,
    batch_axis: Sequence[int] | int = 0,
    eps: float = 1e-5,
    output_stat: bool = False,
    fix_parameters: bool = False,
    param_init: Mapping[str, Initializer] | None = None,
    no_scale: bool = False,
    no_bias: bool = False,
) -> Any:
    """Layer normalization with a shift beta and a scale gamma for each element of an example.

    Args:
        inp: (N, ...) array.
        batch_axis, eps, output_stat: see F.layer_normalization.
        fix_parameters, param_init, no_scale, no_bias: see batch_normalization.

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> PF.layer_normalization(nn.Variable((8, 5, 6)), batch_axis=[0, 1]).shape
    (8, 5, 6)
    """
    name = "layer_normalization"
    ones = axes_of(name, batch_axis, len(inp.shape), "batch_axis")
    shape = tuple(1 if i in ones else n for i, n in enumerate(inp.shape))
    beta, gamma = _shift_and_scale(name, shape, fix_parameters, param_init, no_scale, no_bias)
    return F.layer_normalization(inp, beta, gamma, batch_axis, eps, output_stat)


@parametric_function_api("instance_normalization", _SHIFT_AND_SCALE)
def instance_normalization(
    inp: Any,
    channel_axis: int = 1,
    batch_axis: Sequence[int] | int = 0,
    eps: float = 1e-5,
    output_stat: bool = False,
    fix_parameters: bool = False,
    param_init: Mapping[str, Initializer] | None = None,
    no_scale: bool = False,
    no_bias: bool = False,
) -> Any:
    """Instance normalization with a shift beta and a scale gamma for each channel.

    Args:
        inp: (N, C, ...) array.
        channel_axis, batch_axis, eps, output_stat: see F.instance_normalization.
        fix_parameters, param_init, no_scale, no_bias: see batch_normalization.

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> PF.instance_normalization(nn.Variable((8, 3, 4, 4))).shape
    (8, 3, 4, 4)
    """
    name = "instance_normalization"
    shape = _of_axes(inp, (axis_of(name, channel_axis, len(inp.shape), "channel_axis"),))
    beta, gamma = _shift_and_scale(name, shape, fix_parameters, param_init, no_scale, no_bias)
    return F.instance_normalization(inp, beta, gamma, channel_axis, batch_axis, eps, output_stat)


@parametric_function_api("group_normalization", _SHIFT_AND_SCALE)
def group_normalization(
    inp: Any,
    num_groups: int,
    channel_axis: int = 1,
    batch_axis: Sequence[int] | int = 0,
    eps: float = 1e-5,
    output_stat: bool = False,
    fix_parameters: bool = False,
    param_init: Mapping[str, Initializer] | None = None,
    no_scale: bool = False,
    no_bias: bool = False,
) -> Any:
    """Group normalization with a shift beta and a scale gamma for each channel.

    Args:
        inp: (N, C, ...) array.
        num_groups, channel_axis, batch_axis, eps, output_stat: see F.group_normalization.
        fix_parameters, param_init, no_scale, no_bias: see batch_normalization.

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> PF.group_normalization(nn.Variable((8, 6, 4, 4)), num_groups=2).shape
    (8, 6, 4, 4)
    """
    name = "group_normalization"
    shape = _of_axes(inp, (axis_of(name, channel_axis, len(inp.shape), "channel_axis"),))
    parameters = _shift_and_scale(name, shape, fix_parameters, param_init, no_scale, no_bias)
    return F.group_normalization(
        inp, *parameters, num_groups, channel_axis, batch_axis, eps, output_stat
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
    init = _initializers(function, param_init, {"beta": 0, "gamma": 1, "mean": 0, "var": 1})
    shape = _of_axes(inp, axes)
    beta, gamma = _trained(shape, init, fix_parameters, no_scale, no_bias)
    mean = get_parameter_or_create("mean", shape, init["mean"], False)
    var = get_parameter_or_create("var", shape, init["var"], False)
    return beta, gamma, mean, var


def _shift_and_scale(
    function: str,
    shape: Sequence[int],
    fix_parameters: bool,
    param_init: Mapping[str, Initializer] | None,
    no_scale: bool,
    no_bias: bool,
) -> tuple[Any, Any]:
    """beta and gamma of the current scope."""
    init = _initializers(function, param_init, {"beta": 0, "gamma": 1})
    return _trained(shape, init, fix_parameters, no_scale, no_bias)


def _trained(
    shape: Sequence[int],
    init: Mapping[str, Initializer],
    fix_parameters: bool,
    no_scale: bool,
    no_bias: bool,
) -> tuple[Any, Any]:
    beta, gamma = (
        None
        if left_out
        else get_parameter_or_create(name, shape, init[name], True, not fix_parameters)
        for name, left_out in (("beta", no_bias), ("gamma", no_scale))
    )
    return beta, gamma


def _initializers(
    function: str, param_init: Mapping[str, Initializer] | None, values: Mapping[str, float]
) -> dict[str, Initializer]:
    """Those that the user gave, and constants."""
    unknown = set(param_init or {}) - set(values)
    if unknown:
        raise ParameterError(
            f"[{function}] param_init has {sorted(unknown)}; the parameters are {sorted(values)}"
        )
    return {**{name: ConstantInitializer(v) for name, v in values.items()}, **(param_init or {})}


def _of_axes(inp: Any, axes: Sequence[int]) -> tuple[int, ...]:
    """The shape of inp with 1 at all other axes."""
    return tuple(n if i in axes else 1 for i, n in enumerate(inp.shape))
