"""Errors of values that kernels find: a label or an index out of range.

A kernel cannot raise. It notes the error in a word in device memory that stays set; kernels that
would carry the damage on (the solvers' updates) do nothing while it is set, so parameters stay
clean. The error is raised when the host next reads something from the device, with the line that
called the function.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import cupy
import numpy as np

from ..errors import LabelError, calling_line
from .kernels import FLOATS, TYPES, includes, kernel

# Of the word: which check found something (0: none), the first wrong value, how many are wrong.
_WORDS = 3
_THREADS = 256

# One block goes over all values: which wrong value is the first does not depend on timing.
_CHECK = """
extern "C" __global__ void {name}(const {type}* values, long long* whole, long long size,
                                  long long low, long long high, long long check, double* word) {{
  __shared__ long long first[{threads}], wrong[{threads}];
  long long mine = size, found = 0;
  for (long long i = threadIdx.x; i < size; i += blockDim.x) {{
    {type} value = values[i];
    if ({wrong}) {{
      if (mine == size) mine = i;
      ++found;
    }}
  }}
  first[threadIdx.x] = mine;
  wrong[threadIdx.x] = found;
  __syncthreads();
  for (int half = {threads} / 2; half > 0; half /= 2) {{
    if (threadIdx.x < half) {{
      if (first[threadIdx.x + half] < first[threadIdx.x])
        first[threadIdx.x] = first[threadIdx.x + half];
      wrong[threadIdx.x] += wrong[threadIdx.x + half];
    }}
    __syncthreads();
  }}
  if (threadIdx.x == 0 && wrong[0] && word[0] == 0) {{
    word[1] = (double)values[first[0]];
    word[2] = (double)wrong[0];
    word[0] = (double)check;
  }}
}}
"""
_OUT_OF_RANGE = "value < low || value > high"
_NOT_WHOLE = "(whole[i] = (long long)(double)value, (double)whole[i] != (double)value)"

_messages: list[str] = []  # by number of the check, from 1 on
_numbers: dict[str, int] = {}


def check_range(values: Any, low: int, high: int, message: str) -> None:
    """Note an error unless low <= values <= high (int64); see namespace.check_range."""
    _run("check_range", cupy.ascontiguousarray(values), None, low, high, message)


def whole_numbers(values: Any, message: str) -> Any:
    """`values`, floats, as int64; notes an error where they are not whole."""
    whole = cupy.empty(values.shape, np.int64)
    _run("whole_numbers", values, whole, 0, 0, message)
    return whole


def error_word() -> Any:
    """The word of the current device, float64: errors were found where its first element is not 0.

    Kernels that update parameters do nothing then.
    """
    return _word(cupy.cuda.runtime.getDevice())


def raise_found() -> None:
    """Raise what kernels have found on the current device; the host waits for it."""
    device = cupy.cuda.runtime.getDevice()
    if device not in _checked:
        return
    word = _word(device)
    check, value, wrong = word.get()
    if check:
        word.fill(0)
        raise LabelError(_messages[int(check) - 1].format(value=f"{value:g}", wrong=int(wrong)))


_checked: set[int] = set()  # devices on which something was ever checked


@functools.cache
def _word(device: int) -> Any:
    with cupy.cuda.Device(device):
        return cupy.zeros(_WORDS, np.float64)


def _run(name: str, values: Any, whole: Any, low: int, high: int, message: str) -> None:
    if values.size == 0:
        return
    message = f"{message}{_line()}"
    number = _numbers.get(message)
    if number is None:
        _messages.append(message)
        number = _numbers[message] = len(_messages)
    _checked.add(cupy.cuda.runtime.getDevice())
    kernel(name, _source(name, values.dtype))(
        1, _THREADS, values, values if whole is None else whole, np.int64(values.size),
        np.int64(low), np.int64(high), np.int64(number), error_word(),
    )  # fmt: skip


def _line() -> str:
    found = calling_line()
    if found is None:
        return ""
    # Braces in a file's name are no places of the message.
    name = found[0].replace("{", "{{").replace("}", "}}")
    return f" (found on the GPU in work called at {name}, line {found[1]})"


@functools.cache
def _source(name: str, dtype: np.dtype) -> str:
    wrong = _OUT_OF_RANGE if name == "check_range" else _NOT_WHOLE
    text = _CHECK.format(name=name, type=TYPES[dtype.char], wrong=wrong, threads=_THREADS)
    return includes(dtype.char) + text


def sources() -> Iterator[tuple[str, str]]:
    """(name, CUDA source) of every kernel that can be made here."""
    yield "check_range", _source("check_range", np.dtype(np.int64))
    for dtype in FLOATS.values():
        yield "whole_numbers", _source("whole_numbers", dtype)
