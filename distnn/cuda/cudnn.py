"""cuDNN: is it there, its handles, and plans that are chosen once and then run.

A plan belongs to one operation, configuration and device. It is cuDNN's recommendation, or with
autotuning (`nn.set_autotune`) the fastest of the first few; only plans whose results have the same
bits each time are considered.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import cupy

from .. import autotune
from ..errors import DeviceMemoryError
from . import cudnn_graph
from .problem import RESULT, Problem

logger = logging.getLogger("distnn")

_TIMED_PLANS = 10  # of 20 to 40, in the order of cuDNN's expectations
_RUNS = 3  # of each plan that is timed
_ALIGNMENT = 16  # bytes; what plans expect of every address


class Plan(NamedTuple):
    """One operation, ready to run."""

    graph: Any
    number: int  # of the plan, among the graph's
    workspace: int


@functools.cache
def available() -> bool:
    """True if cuDNN can be used; logs once why it is not. DISTNN_CUDNN=0 switches it off."""
    if os.environ.get("DISTNN_CUDNN", "") == "0":
        logger.info("convolutions use im2col: cuDNN is switched off by DISTNN_CUDNN=0")
        return False
    try:
        cudnn_graph.library()
    except (ImportError, RuntimeError, OSError) as error:
        logger.warning(
            "convolutions use im2col, which is slower: cuDNN cannot be loaded (%s); "
            "pip install 'distnn[cuda13]' (or cuda12), or set DISTNN_CUDNN=0",
            str(error).strip() or type(error).__name__,
        )
        return False
    return True


_plans: dict[tuple[str, Problem, int, int], Plan | None] = {}
_lock = threading.RLock()


def plan(kind: str, problem: Problem, arrays: Mapping[int, Any]) -> Plan | None:
    """The plan for an operation on the current device, chosen when first asked for.

    Args:
        kind: one of problem.KINDS.
        arrays: the operation's, by uid. If plans are timed, the result is overwritten.
    Returns: None where cuDNN has no engine, which is logged once.
    """
    key = (kind, problem, cupy.cuda.runtime.getDevice(), autotune.generation)
    with _lock:
        if key not in _plans:
            _plans[key] = _chosen(kind, problem, arrays)
        return _plans[key]


def run(plan: Plan, arrays: Mapping[int, Any]) -> None:
    """Queue an operation on the current stream; `arrays` by uid, C-contiguous."""
    usable = {uid: _aligned(array) for uid, array in arrays.items()}
    _execute(plan, usable)
    if usable[RESULT] is not arrays[RESULT]:
        arrays[RESULT][...] = usable[RESULT]


def _aligned(array: Any) -> Any:
    return array.copy() if array.data.ptr % _ALIGNMENT else array


def _execute(plan: Plan, arrays: Mapping[int, Any]) -> None:
    # The workspace goes back to the pool as soon as the work is queued: whoever gets it next comes
    # later on this stream.
    workspace = cupy.cuda.alloc(plan.workspace) if plan.workspace else None
    plan.graph.execute_plan_at_index(
        {uid: array.data.ptr for uid, array in arrays.items()},
        0 if workspace is None else workspace.ptr,
        plan.number,
        handle=_handle(),
    )


def _chosen(kind: str, problem: Problem, arrays: Mapping[int, Any]) -> Plan | None:
    try:
        graph = cudnn_graph.build(kind, problem, handle=_handle())
        several = autotune.in_use()
        considered = itertools.islice(cudnn_graph.plans(graph), _TIMED_PLANS if several else 1)
        candidates = {name: Plan(graph, number, size) for number, name, size in considered}
        if not candidates:
            raise cudnn_graph.UnsupportedError("none of its plans can be built")
    except cudnn_graph.UnsupportedError as error:
        logger.warning(
            "cuDNN has no engine for a convolution's %s (%s; %s): im2col computes it, more slowly",
            kind, problem, error,
        )  # fmt: skip
        return None
    name = None
    if several:
        configuration = _configuration(kind, problem)
        name = autotune.chosen(configuration, lambda: _fastest(candidates, arrays))
    return candidates.get(name or "") or next(iter(candidates.values()))


def _fastest(candidates: Mapping[str, Plan], arrays: Mapping[int, Any]) -> str:
    """The name of the plan that takes the least time on `arrays`."""
    times = {}
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    for name, candidate in candidates.items():
        try:
            run(candidate, arrays)  # the first run loads code
            start.record()
            for _ in range(_RUNS):
                run(candidate, arrays)
        except (cupy.cuda.memory.OutOfMemoryError, DeviceMemoryError):  # for its workspace
            continue
        stop.record()
        stop.synchronize()
        times[name] = cupy.cuda.get_elapsed_time(start, stop)
    return min(times, key=times.__getitem__) if times else next(iter(candidates))


def _configuration(kind: str, problem: Problem) -> str:
    """What a choice depends on, in words, for those who hand choices on."""
    device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())["name"]
    version = cudnn_graph.library().backend_version()
    return f"cuDNN {version}, {device.decode()}: {kind}, {problem}"


_local = threading.local()


def _handle() -> Any:
    """The handle of this thread and device, set to the current stream."""
    cudnn = cudnn_graph.library()
    handles = vars(_local).setdefault("handles", {})
    device, stream = cupy.cuda.runtime.getDevice(), cupy.cuda.get_current_stream().ptr
    handle, its_stream = handles.get(device, (None, None))
    if handle is None:
        handle = cudnn.create_handle()
    if stream != its_stream:
        cudnn.set_stream(handle=handle, stream=stream)
        handles[device] = handle, stream
    return handle
