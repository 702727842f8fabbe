"""A stand-in for the module `cudnn` (cudnn-frontend) on memory of the emulator.

Graphs are built with the calls that distnn makes, and run with NumPy: so a test sees whether
dims, strides, numbers of arrays, pointers and workspace are right. It is as strict as the real one
where that is known: bad strides and shapes, plans that were not built or were deselected, missing
pointers, and handles nobody made raise.
"""

from __future__ import annotations

import enum
import itertools
from typing import Any

import numpy as np
from gpu_emulator import cublas
from gpu_emulator.stream import submit

numerical_note = enum.Enum(
    "numerical_note",
    "TENSOR_CORE DOWN_CONVERT_INPUTS REDUCED_PRECISION_REDUCTION FFT NONDETERMINISTIC WINOGRAD",
)
heur_mode = enum.Enum("heur_mode", "A B FALLBACK")
data_type = enum.Enum("data_type", "NOT_SET HALF BFLOAT16 FLOAT DOUBLE")

_DTYPES = {
    data_type.HALF: np.dtype(np.float16),
    data_type.FLOAT: np.dtype(np.float32),
    data_type.DOUBLE: np.dtype(np.float64),
}

# Every graph's plans: name, notes, bytes of workspace. The first are what must not be taken.
PLANS: list[tuple[str, set[numerical_note], int]] = [
    ("eng0_unordered", {numerical_note.NONDETERMINISTIC}, 0),
    ("eng1_huge", set(), 2**40),
    ("eng2_tensor_core", {numerical_note.TENSOR_CORE}, 4096),
    ("eng3_plain", set(), 1024),
    ("eng4_plain", set(), 0),
]

graphs: list[Any] = []  # that were built
runs: list[tuple[str, str, int]] = []  # (operation, plan, stream) of each execution
streams: dict[int, int] = {}  # of each handle
unsupported: set[str] = set()  # operations for which there is no engine

_handles = itertools.count(1)


class cudnnGraphNotSupportedError(Exception):
    pass


def backend_version() -> int:
    return 92800


def create_handle() -> int:
    handle = next(_handles)
    streams[handle] = 0
    return handle


def set_stream(handle: int, stream: int) -> None:
    streams[handle] = stream


class Tensor:
    def __init__(self, dim: list[int], stride: list[int], kind: data_type, uid: int) -> None:
        self.dim, self.stride, self.kind, self.uid = dim, stride, kind, uid
        self.output = False

    def set_output(self, output: bool) -> Tensor:
        self.output = output
        return self

    def set_data_type(self, kind: data_type) -> Tensor:
        self.kind = kind
        return self

    def set_uid(self, uid: int) -> Tensor:
        self.uid = uid
        return self

    def set_dim(self, dim: list[int]) -> Tensor:
        self.dim = dim
        return self

    def set_stride(self, stride: list[int]) -> Tensor:
        self.stride = stride
        return self

    def array(self, pointers: dict[int, int]) -> np.ndarray:
        """The memory at this tensor's pointer, in the logical order of axes."""
        pointer, dtype = pointers[self.uid], _DTYPES[self.kind]
        if pointer % 16:
            raise RuntimeError(f"address {pointer:#x} is not aligned")
        size = 1 + sum((n - 1) * s for n, s in zip(self.dim, self.stride, strict=True))
        memory = cublas.memory(pointer, size * dtype.itemsize)
        strides = [s * dtype.itemsize for s in self.stride]
        return np.ndarray(self.dim, dtype, memory, 0, strides)


class pygraph:
    def __init__(self, io_data_type, intermediate_data_type, compute_data_type, handle) -> None:
        if handle not in streams:
            raise RuntimeError(f"{handle} is no handle")
        self.compute = _DTYPES[compute_data_type]
        self.tensors: list[Tensor] = []
        self.operation = ""
        self.operands: tuple[Tensor, Tensor]
        self.window: dict[str, list[int]] = {}
        self.bias_tensor: Tensor | None = None
        self.unwanted: set[numerical_note] = set()
        self.built: set[int] = set()
        self.result = Tensor([], [], io_data_type, 0)

    # -- building -----------------------------------------------------------------------------

    def tensor(self, dim, stride, data_type, uid) -> Tensor:
        if not all(isinstance(n, int) and n > 0 for n in (*dim, *stride)):
            raise RuntimeError(f"dims {dim} and strides {stride} must be positive")
        tensor = Tensor(dim, stride, data_type, uid)
        self.tensors.append(tensor)
        return tensor

    def conv_fprop(self, image, weight, padding, stride, dilation) -> Tensor:
        return self._convolution("fprop", image, weight, padding, stride, dilation)

    def conv_dgrad(self, loss, filter, padding, stride, dilation) -> Tensor:
        return self._convolution("dgrad", loss, filter, padding, stride, dilation)

    def conv_wgrad(self, image, loss, padding, stride, dilation) -> Tensor:
        return self._convolution("wgrad", image, loss, padding, stride, dilation)

    def bias(self, input, bias) -> Tensor:
        self.bias_tensor = bias
        return input

    def _convolution(self, operation, first, second, padding, stride, dilation) -> Tensor:
        self.operation, self.operands = operation, (first, second)
        self.window = {"padding": padding, "stride": stride, "dilation": dilation}
        return self.result

    def validate(self) -> None:
        if not self.result.output or not self.result.dim or not self.result.stride:
            raise RuntimeError("the result's dims or strides are not set")
        for tensor in (*self.tensors, self.result):
            last = 1 + sum((n - 1) * s for n, s in zip(tensor.dim, tensor.stride, strict=True))
            if last != np.prod(tensor.dim):
                raise RuntimeError(f"strides {tensor.stride} do not fill {tensor.dim}")
        uids = [tensor.uid for tensor in (*self.tensors, self.result)]
        if len(set(uids)) < len(uids):
            raise RuntimeError(f"uids {uids} are not unique")

    def build_operation_graph(self) -> None:
        x, w, y = self._named(*(t.dim for t in self.operands), self.result.dim)
        lengths = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, p, s, d in zip(x[2:], w[2:], *self.window.values(), strict=True)
        ]
        if y != [x[0], w[0], *lengths] or x[1] % w[1]:
            raise RuntimeError(f"CUDNN_STATUS_BAD_PARAM: {x} and {w} do not give {y}")

    def create_execution_plans(self, modes) -> None:
        graphs.append(self)

    def deselect_numeric_notes(self, notes) -> None:
        self.unwanted |= set(notes)

    def check_support(self) -> None:
        if self.operation in unsupported:
            raise cudnnGraphNotSupportedError("No valid engine configs\nmore of it")

    def get_execution_plan_count(self) -> int:
        return len(PLANS)

    def get_plan_name_at_index(self, index) -> str:
        return PLANS[index][0]

    def build_plan_at_index(self, index) -> None:
        if PLANS[index][1] & self.unwanted:
            raise cudnnGraphNotSupportedError("Deselecting execution plan")
        self.built.add(index)

    def get_workspace_size_plan_at_index(self, index) -> int:
        return PLANS[index][2] if index in self.built else 0

    # -- running ------------------------------------------------------------------------------

    def execute_plan_at_index(self, pointers, workspace, index, handle) -> None:
        name, notes, workspace_size = PLANS[index]
        if index not in self.built:
            raise RuntimeError(f"plan {name} was not built")
        if not all(type(p) is int and p for p in pointers.values()) or type(workspace) is not int:
            raise RuntimeError("pointers must be int")
        if bool(workspace) != bool(workspace_size):
            raise RuntimeError(f"workspace is {workspace} but the plan needs {workspace_size}")
        if workspace:
            cublas.memory(workspace, workspace_size)[:] = b"\xff" * workspace_size
        stream = streams[handle]

        def action() -> None:
            first, second = (self._input(t, pointers, notes) for t in self.operands)
            x, w, y = self._named(first, second, np.zeros(self.result.dim, self.compute))
            compute = {"fprop": _forward, "dgrad": _data_gradient, "wgrad": _filter_gradient}
            compute[self.operation](x, w, y, *self.window.values())
            result = {"fprop": y, "dgrad": x, "wgrad": w}[self.operation]
            if self.bias_tensor is not None:
                result += self.bias_tensor.array(pointers)
            self.result.array(pointers)[...] = result

        submit(("function", f"cudnn {self.operation}", stream), action, stream)
        runs.append((self.operation, name, stream))

    def _input(self, tensor, pointers, notes) -> np.ndarray:
        values = tensor.array(pointers).astype(self.compute)
        if numerical_note.TENSOR_CORE in notes and tensor.kind is data_type.FLOAT:
            values = values.astype(np.float16).astype(self.compute)  # as many bits as TF32
        return values

    def _named(self, first: Any, second: Any, result: Any) -> tuple[Any, Any, Any]:
        """x, w and y of the convolution that the operation belongs to."""
        return {
            "fprop": (first, second, result),
            "dgrad": (result, second, first),
            "wgrad": (first, result, second),
        }[self.operation]


def _windows(x, w, y, padding, stride, dilation):
    """For each group and tap: the filters, the pixels that the tap reads, and the results."""
    groups = x.shape[1] // w.shape[1]
    padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)])
    channels, filters = w.shape[1], w.shape[0] // groups
    for g in range(groups):
        rows = slice(g * filters, (g + 1) * filters)
        for tap in itertools.product(*map(range, w.shape[2:])):
            place = tuple(
                slice(t * d, t * d + s * (n - 1) + 1, s)
                for t, n, s, d in zip(tap, y.shape[2:], stride, dilation, strict=True)
            )
            pixels = (slice(None), slice(g * channels, (g + 1) * channels), *place)
            yield padded, pixels, (rows, slice(None), *tap), (slice(None), rows)


def _forward(x, w, y, *window) -> None:
    for padded, pixels, tap, rows in _windows(x, w, y, *window):
        y[rows] += np.einsum("nc...,fc->nf...", padded[pixels], w[tap])


def _data_gradient(x, w, y, padding, *window) -> None:
    for padded, pixels, tap, rows in _windows(x, w, y, padding, *window):
        gradient = np.zeros_like(padded)
        gradient[pixels] = np.einsum("nf...,fc->nc...", y[rows], w[tap])
        inner = tuple(slice(p, n - p) for p, n in zip(padding, padded.shape[2:], strict=True))
        x += gradient[(slice(None), slice(None), *inner)]


def _filter_gradient(x, w, y, *window) -> None:
    for padded, pixels, tap, rows in _windows(x, w, y, *window):
        w[tap] = _products(y[rows], padded[pixels])


def _products(y, x) -> np.ndarray:
    """(N, F, *O), (N, C, *O) -> (F, C)"""
    y, x = (a.reshape(*a.shape[:2], -1) for a in (y, x))
    return np.einsum("nfo,nco->fc", y, x)
