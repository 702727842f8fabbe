"""One launch for many arrays: solver updates, sums of squares, searches for infinities.

Sizes and addresses of the arrays lie in a table in device memory (job_tables.py). A block works on
one chunk of one array.
"""

from __future__ import annotations

import functools
import itertools
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import cupy
import numpy as np

from ..formula import Assignments
from ..formula_lines import written
from . import labels, transfer
from .formula_source import assignments_code
from .job_tables import CHUNK, JOB, Table, is_noting, table
from .kernels import FLOATS, THREADS, TYPES, Kernel, blocks_for, includes, kernel
from .pack import header, pack_length

Jobs = Sequence[tuple[Sequence[Any], Sequence[float]]]


def run(rule: Assignments, jobs: Jobs) -> None:
    """Run `rule` on each job: its arrays, written in place, and its numbers.

    One launch for all jobs whose arrays have the same dtypes. It does nothing where the error word
    is set (labels.py): what an error has spoilt does not reach parameters.

    Args:
        jobs: arrays, C-contiguous and of one size, and numbers, in the order of the rule.
    """
    groups: dict[tuple[np.dtype, ...], list] = {}
    for job in jobs:
        if job[0][0].size:
            groups.setdefault(tuple(a.dtype for a in job[0]), []).append(job)
    for dtypes, members in groups.items():
        update, settings = _update(rule, dtypes)
        mine = table(rule, tuple((a[0].size, *(array.data.ptr for array in a)) for a, _ in members))
        numbers = mine.numbers([settings(*numbers) for _, numbers in members])
        if numbers is not None:
            update(mine.blocks, THREADS, _stop_word(), mine.words, numbers, np.int64(mine.jobs))


def sums_of_squares(arrays: Sequence[Any]) -> list[float]:
    """The sum of squares of each array, in float64; the host waits for them.

    They are added in an order that depends on the array's size only.
    """
    return _sums("squares", arrays)


def any_of(test: str, arrays: Sequence[Any]) -> bool:
    """True if some element is infinite ("isinf"), NaN ("isnan") or either ("not isfinite")."""
    return any(_sums(test, arrays))


def clip(scale: Assignments, arrays: Sequence[Any], norm: float) -> None:
    """Multiply each array by what takes its norm down to `norm`, where it is larger.

    The host waits for nothing: norms and factors stay on the device.

    Args:
        scale: a rule of one array and one number, its factor.
        arrays: C-contiguous.
    """
    groups: dict[np.dtype, list] = {}
    for array in arrays:
        if array.size:
            groups.setdefault(array.dtype, []).append(array)
    for dtype, mine in groups.items():
        if is_noting():
            _sums_table(mine)
            table(scale, tuple((a.size, a.data.ptr) for a in mine))
            continue
        factors = _device_sums("squares", mine)
        kernel("clip_factors", _CLIP_FACTORS)(
            blocks_for(len(mine)), THREADS, factors, np.int64(len(mine)), np.float64(norm)
        )
        update, _ = _update(scale, (dtype,))
        jobs = table(scale, tuple((a.size, a.data.ptr) for a in mine))
        update(jobs.blocks, THREADS, _stop_word(), jobs.words, factors, np.int64(jobs.jobs))


class Guard:
    """A `with` in which `run` and `clip` change nothing if some element is infinite or NaN.

    What was found lies where it stays, and goes to the host while nobody waits.
    """

    def __init__(self) -> None:
        self._word = cupy.empty(2, np.float64)
        self._memory = cupy.cuda.alloc_pinned_memory(self._word.nbytes)
        self._copied: Any = None

    def look(self, arrays: Sequence[Any]) -> None:
        """Queue the search through these arrays."""
        filled = [a for a in arrays if a.size]
        if is_noting():
            if filled:
                _sums_table(filled)
            return
        counts = _device_sums("not isfinite", filled) if filled else self._word
        kernel("guard", _GUARD)(
            1, 1, labels.error_word(), counts, np.int64(len(filled)), self._word
        )

    def __enter__(self) -> Guard:
        _here.stop_word = self._word
        return self

    def __exit__(self, *exception: object) -> None:
        _here.stop_word = None

    def queued(self) -> None:
        """Send what the search finds to the host, after all that was queued until now."""
        stream = cupy.cuda.get_current_stream()
        self._word.data.copy_to_host_async(self._memory.ptr, self._word.nbytes, stream)
        self._copied = stream.record()

    def stopped(self) -> bool:
        """Whether there was such an element; the host waits until that is known."""
        self._copied.synchronize()
        return bool(np.frombuffer(self._memory, np.float64, 2)[1])


_here = threading.local()


def _stop_word() -> Any:
    """Updates do nothing where its first element is not 0."""
    word = getattr(_here, "stop_word", None)
    return labels.error_word() if word is None else word


# -- updates --------------------------------------------------------------------------------------

_UPDATE = """{header}
{function}
// Elements begin to end, V at a time; their number is a multiple of V.
template <int V>
static __device__ __forceinline__ void run(long long begin, long long end, {parameters}) {{
  for (long long i = begin + threadIdx.x * V; i < end; i += blockDim.x * V) {{
{loads}#pragma unroll
    for (int k = 0; k < V; ++k) {{
{elements}      update({values});
{results}    }}
{stores}  }}
}}

extern "C" __global__ void {name}(const double* error, const long long* words,
                                  const double* numbers, long long jobs) {{
  if (*error != 0) return;
{job}{pointers}{numbers}  const long long packed = {aligned} ? end - (end - begin) % {pack} : begin;
  run<{pack}>(begin, packed, {arguments});
  run<1>(packed, end, {arguments});
}}
"""


@functools.cache
def _update(rule: Assignments, dtypes: tuple[np.dtype, ...]) -> tuple[Kernel, Any]:
    """The kernel of a rule, and what makes its numbers of the rule's."""
    settings = assignments_code(rule, dtypes).settings
    return kernel(_name(rule), update_source(rule, dtypes)), settings


def _name(rule: Assignments) -> str:
    """The kernel's name, which profilers show."""
    return "update_" + re.sub(r"\W+", "_", "_".join((*rule.arrays, *rule.numbers)))


def update_source(rule: Assignments, dtypes: tuple[np.dtype, ...]) -> str:
    """CUDA source of the kernel of a rule on arrays of `dtypes`."""
    code = assignments_code(rule, dtypes)
    types = [TYPES[dtype.char] for dtype in dtypes]
    pack = pack_length(dtypes)
    count = range(len(types))
    assigned = [i for i in count if rule.arrays[i] in written(rule)]
    arrays = [f"a{i}" for i in count]
    numbers = [f"n{i}" for i in range(code.numbers)]

    def lines(indent: int, texts: Sequence[str]) -> str:
        return "".join(f"{' ' * indent}{text}\n" for text in texts)

    return _UPDATE.format(
        header=header(dtypes),
        function=code.text,
        name=_name(rule),
        parameters=", ".join([*(f"{t}* a{i}" for i, t in enumerate(types)),
                              *(f"T {n}" for n in numbers)]),
        loads=lines(4, [f"Pack<{t}, V> p{i} = pack<V>(a{i} + i);" for i, t in enumerate(types)]),
        elements=lines(6, [f"T e{i} = (T)p{i}.element[k];" for i in count]),
        values=", ".join([*(f"e{i}" for i in count), *numbers]),
        results=lines(6, [f"p{i}.element[k] = ({types[i]})e{i};" for i in assigned]),
        stores=lines(4, [f"pack<V>(a{i} + i) = p{i};" for i in assigned]),
        job=JOB.format(width=1 + len(types), chunk=CHUNK),
        pointers=lines(2, [f"{t}* a{i} = ({t}*)own[{1 + i}];" for i, t in enumerate(types)]),
        numbers=lines(2, [f"const T {n} = (T)numbers[job * {len(numbers)} + {i}];"
                          for i, n in enumerate(numbers)]),
        aligned=" && ".join(f"aligned<{pack}>({a})" for a in arrays),
        pack=pack,
        arguments=", ".join([*arrays, *numbers]),
    )  # fmt: skip


# -- sums -----------------------------------------------------------------------------------------

# What is added for an element x, a double.
_TERMS = {
    "squares": "x * x",
    "isinf": "fabs(x) > 1.7976931348623157e308",
    "isnan": "x != x",
    "not isfinite": "!(fabs(x) <= 1.7976931348623157e308)",
}
_CHARS = "efdE"  # dtypes of arrays, by their number in the table

_SUMS = """{header}
// The sum of a block's numbers, in all threads; always added in the same order.
static __device__ __forceinline__ double block_sum(double number) {{
  __shared__ double numbers[{threads}];
  numbers[threadIdx.x] = number;
  __syncthreads();
  for (int half = {threads} / 2; half > 0; half /= 2) {{
    if (threadIdx.x < half) numbers[threadIdx.x] += numbers[threadIdx.x + half];
    __syncthreads();
  }}
  return numbers[0];
}}

// Which elements a thread adds does not depend on alignment.
template <class X>
static __device__ __forceinline__ double sum(const X* values, long long begin, long long end) {{
  const bool packed = aligned<4>(values);
  double total = 0;
  for (long long i = begin + threadIdx.x * 4; i < end; i += {threads} * 4) {{
    Pack<X, 4> p;
    if (packed && i + 4 <= end) {{
      p = pack<4>(values + i);
    }} else {{
      for (int k = 0; k < 4; ++k) p.element[k] = i + k < end ? values[i + k] : (X)0.0f;
    }}
#pragma unroll
    for (int k = 0; k < 4; ++k) {{
      const double x = (double)p.element[k];
      total += {term};
    }}
  }}
  return total;
}}

extern "C" __global__ void chunk_sums(const long long* words, double* sums, long long jobs) {{
{job}  const double total = own[2] == 0   ? sum((const __half*)own[1], begin, end)
                       : own[2] == 1 ? sum((const float*)own[1], begin, end)
                       : own[2] == 2 ? sum((const double*)own[1], begin, end)
                                     : sum((const __nv_bfloat16*)own[1], begin, end);
  const double all = block_sum(total);
  if (threadIdx.x == 0) sums[blockIdx.x] = all;
}}

// One block for each job.
extern "C" __global__ void job_sums(const long long* words, const double* sums, double* results) {{
  double total = 0;
  for (long long i = words[blockIdx.x] + threadIdx.x; i < words[blockIdx.x + 1]; i += {threads})
    total += sums[i];
  const double all = block_sum(total);
  if (threadIdx.x == 0) results[blockIdx.x] = all;
}}
"""


def _sums(term: str, arrays: Sequence[Any]) -> list[float]:
    """The sum of a term over each array: two launches and one read for all of them."""
    results = [0.0] * len(arrays)
    filled = [i for i, a in enumerate(arrays) if a.size]
    if filled:
        found = transfer.to_host(_device_sums(term, [arrays[i] for i in filled])).tolist()
        for i, value in zip(filled, found, strict=True):
            results[i] = value
    return results


def _sums_table(arrays: Sequence[Any]) -> Table:
    return table("sums", tuple((a.size, a.data.ptr, _CHARS.index(a.dtype.char)) for a in arrays))


def _device_sums(term: str, arrays: Sequence[Any]) -> Any:
    """The sums, float64, in device memory; no array is empty."""
    # Views are read through copies, which have to live until the kernels have been queued.
    values = [cupy.ascontiguousarray(a) for a in arrays]
    mine = _sums_table(values)
    sums = cupy.empty(mine.blocks, np.float64)
    found = cupy.empty(mine.jobs, np.float64)
    source = _sums_source(term)
    kernel("chunk_sums", source)(mine.blocks, THREADS, mine.words, sums, np.int64(mine.jobs))
    kernel("job_sums", source)(mine.jobs, THREADS, mine.words, sums, found)
    return found


_CLIP_FACTORS = """
extern "C" __global__ void clip_factors(double* squares, long long count, double norm) {
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < count;
       i += (long long)gridDim.x * blockDim.x)
    squares[i] = squares[i] > norm * norm ? norm / sqrt(squares[i]) : 1.0;
}
"""

# word[0]: whether updates stop, for whichever reason; word[1]: whether it is for these counts.
_GUARD = """
extern "C" __global__ void guard(const double* error, const double* counts, long long jobs,
                                 double* word) {
  bool found = false;
  for (long long i = 0; i < jobs; ++i) found = found || counts[i] != 0;
  word[0] = found || *error != 0;
  word[1] = found;
}
"""


@functools.cache
def _sums_source(term: str) -> str:
    return _SUMS.format(
        header=includes(_CHARS) + header(()),
        threads=THREADS,
        term=_TERMS[term],
        job=JOB.format(width=3, chunk=CHUNK),
    )


def sources() -> Iterator[tuple[str, str]]:
    """(name, CUDA source) of the sums, and of an update for every combination of dtypes."""
    yield "clip_factors", _CLIP_FACTORS
    yield "guard", _GUARD
    for term in _TERMS:
        yield "chunk_sums", _sums_source(term)
    rule = Assignments("v = rate * v + g\nw = w - v", ("w", "g", "v"), ("rate",))
    for dtypes in itertools.product(FLOATS.values(), repeat=3):
        yield _name(rule), update_source(rule, dtypes)
