"""CUDA graphs as one graph, in which each is a node that comes after the one before.

CuPy has no function for that; the driver, which it runs on, has.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import cupy


class Merged:
    """Graphs that are launched as one, one after the other."""

    def __init__(self, graphs: Sequence[Any]) -> None:
        self._executable = 0
        driver = _driver()
        graph, node = ctypes.c_void_p(), ctypes.c_void_p()
        _check("cuGraphCreate", driver.cuGraphCreate(ctypes.byref(graph), ctypes.c_uint(0)))
        assert graph.value is not None
        try:
            for number, each in enumerate(graphs):
                before = (ctypes.c_void_p * 1)(node.value)
                _check(
                    "cuGraphAddChildGraphNode",
                    driver.cuGraphAddChildGraphNode(
                        ctypes.byref(node),
                        graph,
                        before if number else None,
                        ctypes.c_size_t(min(number, 1)),
                        ctypes.c_void_p(each.graph),
                    ),
                )
            self._executable = cupy.cuda.runtime.graphInstantiate(graph.value)
        finally:
            cupy.cuda.runtime.graphDestroy(graph.value)

    def launch(self) -> None:
        """Queue the work of all on the current stream."""
        cupy.cuda.runtime.graphLaunch(self._executable, cupy.cuda.get_current_stream().ptr)

    def __del__(self) -> None:
        if self._executable:
            cupy.cuda.runtime.graphExecDestroy(self._executable)


def _check(function: str, result: int) -> None:
    if result != 0:
        raise RuntimeError(f"{function} of the CUDA driver returned error {result}")


@functools.cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")
