"""Parameter files: save_parameters and load_parameters."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from .array_file import ArrayFile, Arrays, Attributes
from .context import current_backend
from .errors import ArgumentError, ClearedError, ParameterError
from .parameter import get_current_parameter_scope, get_parameter_or_create, get_parameters
from .variable import Variable


def save_parameters(
    path: Any, params: Mapping[str, Variable] | None = None, extension: str | None = None
) -> None:
    """Write parameters to a file: names, values in their dtype, need_grad and order.

    The file is written beside its final place and then moved there: a crash leaves the old one.

    Args:
        path: ends in .h5 (NNabla's own layout) or .safetensors; or a binary file open for writing,
            which is rewound afterwards.
        params: name -> Variable; None takes all of the current scope, also those with need_grad
            False (running statistics of batch normalization).
        extension: ".h5" or ".safetensors", for an open file; a path says it by its ending.
    Raises: ParameterError for another ending, and where there is nothing to save: an empty file
        over a good one is a loss. MissingExtraError where h5py or safetensors is not installed.

    >>> import io, h5py, distnn as nn
    >>> file = io.BytesIO()
    >>> save_parameters(file, {"conv/W": nn.Variable((2, 3))}, extension=".h5")
    >>> h5py.File(file, "r")["conv/W"].shape
    (2, 3)
    """
    file = ArrayFile("save_parameters", ParameterError, path, extension)
    if params is None:
        params = get_parameters(grad_only=False)
    if not params:
        raise file.error(
            f"there are no parameters to save, {file.name} is left as it was; build the network "
            "first, or pass params"
        )
    arrays: Arrays = {}
    attributes: Attributes = {}
    for index, (name, parameter) in enumerate(params.items()):
        if not isinstance(parameter, Variable):
            raise file.error(
                f"params[{name!r}] is {type(parameter).__name__}; pass Variables, for example "
                "params=nn.get_parameters(grad_only=False)"
            )
        try:
            arrays[name] = parameter.data.get_data("r")
        except ClearedError as reason:
            raise file.error(f"{name!r} has no values to save: {reason}") from reason
        attributes[name] = {"need_grad": bool(parameter.need_grad), "index": index}
    file.write(arrays, attributes)


def load_parameters(
    path: Any, proto: None = None, needs_proto: bool = False, extension: str = ".nntxt"
) -> None:
    """Read parameters from a file into the current scope, below it inside a parameter_scope.

    Missing parameters are created, in the order in which they were saved. Existing ones keep their
    Variable and their memory, so every graph that uses them sees the new values; their need_grad
    becomes the file's. Parameters that the file does not mention stay as they are. Everything is
    checked before anything is changed: after an error no parameter is different.

    Floats of the file become the parameter's own float type, float32 except under cpu:double, so
    that solvers can go on with them. Integers and booleans stay what they are where the parameter
    is new or holds such numbers itself, and become floats in a parameter that holds floats.

    Args:
        path: ends in .h5 (distnn's or NNabla's) or .safetensors (distnn's or another program's:
            then need_grad is True and the order the file's); or an open binary file.
        proto, needs_proto: of NNabla's network format, which is not supported: leave the defaults.
        extension: ".h5" or ".safetensors", for an open file; a path says it by its ending.
    Raises: ParameterError where the file is missing, broken or empty, where a shape differs, and
        where a name is a scope on one side and a parameter on the other. MissingExtraError where
        h5py or safetensors is not installed.

    >>> import io, numpy as np, distnn as nn
    >>> file = io.BytesIO()
    >>> save_parameters(file, {"w": nn.Variable.from_numpy_array(np.ones(2))}, extension=".h5")
    >>> with nn.parameter_scope("load_example"):
    ...     load_parameters(file, extension=".h5")
    >>> nn.get_parameters(grad_only=False)["load_example/w"].d
    array([1., 1.], dtype=float32)
    """
    if proto is not None or needs_proto:
        given = f"needs_proto={needs_proto}" if proto is None else f"proto={type(proto).__name__}"
        raise ArgumentError(
            f"[load_parameters] got {given}, but networks (.nntxt) cannot be read yet; leave "
            "proto=None and needs_proto=False and build the network in Python"
        )
    file = ArrayFile("load_parameters", ParameterError, path, extension)
    arrays, attributes = file.read()
    if not arrays:
        raise file.error(f"there are no parameters in {file.name}; is it the right file?")
    found = []
    for name, values in arrays.items():
        dtype = _dtype_to_load(_existing(file, name, values.shape), values.dtype)
        saved = attributes.get(name, {})
        index = saved.get("index", math.inf)
        found.append((index, name, values.astype(dtype, copy=False), saved.get("need_grad", True)))
    found.sort(key=lambda item: item[0])  # stable: what has no index stays in the file's order
    for _, name, values, need_grad in found:
        get_parameter_or_create(name, values.shape, need_grad=bool(need_grad)).d = values


def _existing(file: ArrayFile, name: str, shape: tuple[int, ...]) -> Variable | None:
    """The parameter that `name` will be loaded into; None if it must be created."""
    found: Any = get_current_parameter_scope()
    above = ""
    for part in name.split("/"):
        if isinstance(found, Variable):
            raise file.error(
                f"{name!r} of {file.name} lies in a scope {above!r}, but {above!r} is a parameter "
                f"of shape {found.shape} here; load inside another nn.parameter_scope"
            )
        found = found.get(part)
        if found is None:
            return None
        above = f"{above}/{part}" if above else part
    if isinstance(found, OrderedDict):
        raise file.error(
            f"{name!r} is a parameter in {file.name} but a scope here, with {list(found)}; load "
            "inside another nn.parameter_scope"
        )
    if found.shape != shape:
        raise file.error(
            f"{name!r} has shape {shape} in {file.name} but the existing parameter has "
            f"{found.shape}; load the file of this network, or load inside another "
            "nn.parameter_scope"
        )
    return found


def _dtype_to_load(parameter: Variable | None, dtype: np.dtype) -> np.dtype:
    """What values of `dtype` become in `parameter`, or in a new one."""
    present = None if parameter is None else parameter.data.dtype
    if dtype.kind != "f" and (present is None or present.kind != "f"):
        return dtype
    home = None if parameter is None else parameter.data._storage.home
    if home is not None:
        # Back into the slab, as solvers do: `p.d = float64 values` had moved the parameter away.
        return home.array.dtype
    if present is not None and present.kind == "f":
        return present
    return current_backend().parameter_dtype
