"""What of the CUDA driver's graphs CuPy does not have, with the arguments of its C functions.

`cuda` takes the place of the library `libcuda.so.1`, as ctypes loads it.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

from . import stream
from .errors import CUDARuntimeError

_INVALID_VALUE = 1


class _Graph:
    """A graph that is made node by node, each of them another graph."""

    def __init__(self) -> None:
        self.nodes: list[int] = []
        self.operations: list[Any] = []


_graphs: dict[int, _Graph] = {}
_executables: dict[int, stream.Graph] = {}


def _create(graph: Any, flags: ctypes.c_uint) -> int:
    assert isinstance(flags, ctypes.c_uint)
    graph._obj.value = address = next(stream._addresses)
    _graphs[address] = _Graph()
    return 0


def _add_child(
    node: Any, graph: ctypes.c_void_p, dependencies: Any, count: Any, child: ctypes.c_void_p
) -> int:
    assert isinstance(count, ctypes.c_size_t)
    parent = _graphs.get(graph.value or 0)
    captured = stream.graphs.get(child.value or 0)
    if parent is None or captured is None or (dependencies is None) != (count.value == 0):
        return _INVALID_VALUE
    before = [dependencies[i] for i in range(count.value)]
    if before != parent.nodes[-1:]:
        raise AssertionError("the order of the graph's nodes is left open")
    node._obj.value = address = next(stream._addresses)
    parent.nodes.append(address)
    parent.operations += captured._capture.operations  # a copy, as the driver's
    return 0


cuda = SimpleNamespace(cuGraphCreate=_create, cuGraphAddChildGraphNode=_add_child)


def instantiate(graph: int) -> int:
    capture = stream.Capture(0)
    capture.operations += _graphs[graph].operations
    executable = stream.Graph(capture)
    _executables[executable.graphExec] = executable
    return executable.graphExec


def launch(executable: int, address: int) -> None:
    _executables[executable].launch(address)


def destroy(graph: int) -> None:
    if _graphs.pop(graph, None) is None:
        raise CUDARuntimeError("cudaErrorInvalidValue", "there is no such graph", 1)


def destroy_executable(executable: int) -> None:
    del _executables[executable]
