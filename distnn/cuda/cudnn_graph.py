"""Convolutions as graphs of cuDNN: shapes, strides and dtypes, and the plans that may run them.

The logical order of axes is always channels first; strides say how arrays lie in memory. Arrays
are named by numbers (uids). Nothing here needs a device, given the properties of one: so that plans
can be built where there is no GPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .problem import BIAS, FIRST, RESULT, SECOND, Problem

_TYPES = {"float16": "HALF", "bfloat16": "BFLOAT16", "float32": "FLOAT", "float64": "DOUBLE"}
_MOST_WORKSPACE = 1024**3  # bytes; plans that want more are left out


class UnsupportedError(Exception):
    """cuDNN has no plan for a configuration."""


@functools.cache
def library() -> Any:
    """NVIDIA's cudnn-frontend, with cuDNN behind it; raises ImportError or RuntimeError."""
    import cudnn

    cudnn.backend_version()
    return cudnn


def build(kind: str, problem: Problem, **where: Any) -> Any:
    """The graph of one operation; raises UnsupportedError where cuDNN has no engine for it.

    Args:
        kind: one of problem.KINDS.
        where: `handle` of cuDNN on a device, or `device_property` and `sm_version` without one.
    """
    cudnn = library()
    names = cudnn.data_type
    dtype = getattr(names, _TYPES[problem.dtype.name])
    compute = names.DOUBLE if problem.dtype == np.float64 else names.FLOAT
    geometry = problem.geometry
    window = {
        "padding": list(geometry.pad),
        "stride": list(geometry.stride),
        "dilation": list(geometry.dilation),
    }
    try:
        graph = cudnn.pygraph(
            io_data_type=dtype, intermediate_data_type=compute, compute_data_type=compute, **where
        )

        def tensor(uid: int) -> Any:
            shape = problem.shape(uid, kind)
            strides = strides_of(shape, problem.channel_last)
            return graph.tensor(dim=list(shape), stride=strides, data_type=dtype, uid=uid)

        first, second = tensor(FIRST), tensor(SECOND)
        if kind == "data gradient":
            result = graph.conv_dgrad(loss=first, filter=second, **window)
        elif kind == "filter gradient":
            result = graph.conv_wgrad(image=first, loss=second, **window)
        else:
            result = graph.conv_fprop(image=first, weight=second, **window)
            if kind == "forward with bias":
                result = graph.bias(input=result, bias=tensor(BIAS))
        # Strides that are not set are chosen by cuDNN, for other memory than ours.
        result.set_output(True).set_data_type(dtype).set_uid(RESULT)
        shape = problem.shape(RESULT, kind)
        result.set_dim(list(shape)).set_stride(strides_of(shape, problem.channel_last))
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        graph.deselect_numeric_notes(_unwanted(problem))
        graph.check_support()
    except (cudnn.cudnnGraphNotSupportedError, RuntimeError) as error:
        raise UnsupportedError(_first_line(error)) from None
    return graph


def plans(graph: Any) -> Iterator[tuple[int, str, int]]:
    """(number, name, bytes of workspace) of plans that can run, best first as cuDNN thinks.

    Each is built when it is asked for, which can take a second.
    """
    cudnn = library()
    for number in range(graph.get_execution_plan_count()):
        try:
            graph.build_plan_at_index(number)
        except (cudnn.cudnnGraphNotSupportedError, RuntimeError):
            continue  # it was deselected, or cannot run on this device
        workspace = graph.get_workspace_size_plan_at_index(number)
        if workspace <= _MOST_WORKSPACE:
            yield number, graph.get_plan_name_at_index(number), workspace


def strides_of(shape: tuple[int, ...], channel_last: bool) -> list[int]:
    """Elements from one index to the next along each axis (N, C, *S) of an array without gaps."""
    order = [0, *range(2, len(shape)), 1] if channel_last else list(range(len(shape)))
    strides = [0] * len(shape)
    for i, axis in enumerate(order):
        strides[axis] = math.prod(shape[a] for a in order[i + 1 :])
    return strides


def _unwanted(problem: Problem) -> list[Any]:
    """Properties of engines whose results are not what was promised."""
    note = library().numerical_note
    unwanted = [note.NONDETERMINISTIC, note.REDUCED_PRECISION_REDUCTION]
    if problem.dtype == np.float32 and not problem.tf32:
        unwanted += [note.TENSOR_CORE, note.DOWN_CONVERT_INPUTS]
    return unwanted


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
