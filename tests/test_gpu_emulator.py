"""The GPU emulator itself: as strict as CuPy, and kernels give the numbers that CUDA defines."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gpu_emulator
import numpy as np
import pytest
from gpu_emulator import KernelError, RaceError, StreamError, ordering, record, settings

needs_compiler = pytest.mark.skipif(
    gpu_emulator.compiler() is None, reason="kernels on the CPU need g++"
)


@pytest.fixture
def cp() -> Iterator[Any]:
    with gpu_emulator.emulated() as cupy:
        yield cupy


def kernel(cp: Any, code: str, name: str = "f", **options: Any) -> Any:
    return cp.RawModule(code='extern "C" {' + code + "}", **options).get_function(name)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, where gpu_emulator can be imported."""
    folder = Path(gpu_emulator.__path__[0]).parent
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


ADD = """
__global__ void f(const float* x, const float* y, float* out, int n, float scale) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = x[i] + scale * y[i];
}
"""


# Arrays.


def test_install_is_undone() -> None:
    before, installed = sys.modules.get("cupy"), gpu_emulator.installed()
    with gpu_emulator.emulated() as cupy:
        import cupy as imported

        assert imported is cupy
        assert gpu_emulator.installed()
    assert sys.modules.get("cupy") is before
    assert gpu_emulator.installed() == installed


def test_install_refuses_to_replace_an_imported_cupy() -> None:
    code = (
        "import sys, types; sys.modules['cupy'] = types.ModuleType('cupy')\n"
        "import gpu_emulator\n"
        "try: gpu_emulator.install()\n"
        "except RuntimeError as error: print(error)"
    )
    done = run_python(code)
    assert "the real cupy was imported before" in done.stdout, done.stderr


def test_arithmetic_agrees_with_numpy(cp: Any) -> None:
    host = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    x = cp.asarray(host)
    for ours, expected in (
        (x + 2, host + 2),
        (2 - x, 2 - host),
        (np.float32(3) * x, np.float32(3) * host),
        (x @ x.T, host @ host.T),
        (np.tanh(x), np.tanh(host)),
        (x.sum(axis=0), host.sum(axis=0)),
        (x.argmax(axis=1), host.argmax(axis=1)),
        (cp.where(x > 0, x, 0), np.where(host > 0, host, 0)),
        (cp.concatenate([x, x], 1), np.concatenate([host, host], 1)),
        (np.concatenate([x, x]), np.concatenate([host, host])),
        (x[1:, ::2], host[1:, ::2]),
        (x[:, None].transpose(2, 0, 1), host[:, None].transpose(2, 0, 1)),
        (x.reshape(2, -1).max(axis=1, keepdims=True), host.reshape(2, -1).max(1, keepdims=True)),
        (x.astype("f2"), host.astype("f2")),
    ):
        assert type(ours) is cp.ndarray
        assert ours.dtype == expected.dtype
        np.testing.assert_array_equal(ours.get(), expected)


def test_reductions_are_arrays(cp: Any) -> None:
    total = cp.ones(3, "f4").sum()
    assert type(total) is cp.ndarray
    assert total.shape == ()
    assert type(cp.allclose(total, total)) is cp.ndarray


@pytest.mark.parametrize(
    "wrong",
    [
        lambda cp, x: np.asarray(x),
        lambda cp, x: x + np.ones(3, "f4"),
        lambda cp, x: np.ones(3, "f4") + x,
        lambda cp, x: np.add(x, np.ones(3, "f4")),
        lambda cp, x: np.add(x, x, out=np.empty(3, "f4")),
        lambda cp, x: cp.sum(np.ones(3)),
        lambda cp, x: cp.sum([1.0, 2.0]),
        lambda cp, x: cp.where(np.ones(3) > 0, x, 0),
        lambda cp, x: cp.concatenate([x, np.ones(3, "f4")]),
        lambda cp, x: np.concatenate([x, np.ones(3, "f4")]),
        lambda cp, x: cp.sum(x, where=True),
        lambda cp, x: cp.add(x, 1, where=True),
        lambda cp, x: np.block([x, x]),
        lambda cp, x: x[np.array([0, 1])],
        lambda cp, x: x.__setitem__(slice(None), np.ones(3)),
        lambda cp, x: x.set(np.ones(3, "f8")),
        lambda cp, x: bool(x),
        lambda cp, x: range(x[0]),
        lambda cp, x: cp.copyto(x, np.ones(3)),
        lambda cp, x: cp.ascontiguousarray(np.ones(3)),
    ],
)
def test_type_errors_of_cupy(cp: Any, wrong: Any) -> None:
    with pytest.raises(TypeError):
        wrong(cp, cp.ones(3, "f4"))


def test_names_are_those_of_cupy(cp: Any) -> None:
    for name in ("block", "nanpercentile", "float128", "trapezoids"):
        assert not hasattr(cp, name)
    assert cp.__version__ == "14.2.0"
    assert cp.float32 is np.float32


def test_names_txt_is_what_the_real_cupy_has() -> None:
    code = "from gpu_emulator import make_names; print(make_names.text(), end='')"
    done = run_python(code)
    if "No module named 'cupy'" in done.stderr:
        pytest.skip("compares with the real CuPy, which is not installed")
    expected = (Path(gpu_emulator.__path__[0]) / "names.txt").read_text()
    assert done.returncode == 0, done.stderr
    if done.stdout.split("\n")[0] != expected.split("\n")[0]:
        pytest.skip(f"names.txt is of CuPy {expected.split()[2]}, another is installed")
    assert done.stdout == expected


def test_sorting_is_stable(cp: Any) -> None:
    host = np.random.default_rng(0).integers(0, 5, 1000)
    x = cp.asarray(host)
    np.testing.assert_array_equal(x.argsort().get(), np.argsort(host, kind="stable"))
    x.sort()
    np.testing.assert_array_equal(x.get(), np.sort(host))
    with pytest.raises(ValueError, match="stable"):
        cp.sort(x, kind="quicksort")


def test_new_memory_is_nan(cp: Any) -> None:
    for dtype in ("f2", "f4", "f8"):
        assert np.isnan(cp.empty(5, dtype).get()).all()
    assert (cp.empty(5, "i4").get() == -1).all()


def test_indices_out_of_range_wrap(cp: Any) -> None:
    x = cp.arange(5)
    index = cp.asarray([0, 5, 12, -6])
    assert x[index].tolist() == [0, 0, 2, 4]
    assert cp.take(x, index).tolist() == [0, 0, 2, 4]
    x[index] = 9
    assert x.tolist() == [9, 1, 9, 3, 9]
    y = cp.arange(6).reshape(2, 3)
    assert y[:, cp.asarray([4])].tolist() == [[1], [4]]
    assert y[cp.asarray([True, False])].tolist() == [[0, 1, 2]]
    with pytest.raises(IndexError):
        x[5]


def test_views_share_memory_and_know_their_address(cp: Any) -> None:
    x = cp.zeros((4, 6), "f4")
    view = x[1:, 2:]
    assert view.data.ptr - x.data.ptr == 4 * (6 + 2)
    assert view.data.mem is x.data.mem
    assert view.base is x
    assert x.ravel().data.ptr == x.data.ptr
    assert x.T.ravel().data.ptr != x.data.ptr
    view[...] = 1
    assert x.sum().item() == 12
    again = cp.ndarray((3, 4), "f4", view.data, view.strides)
    again += 1
    assert x.sum().item() == 24
    with pytest.raises(TypeError):
        cp.ndarray((5, 6), "f4", x.data)  # passes the end


def test_synchronizations_are_counted(cp: Any) -> None:
    x = cp.asarray(np.ones(4, "f4"))
    assert (record.uploads, record.synchronizations) == (1, 0)
    y = (x * 2).sum()
    assert record.synchronizations == 0
    assert float(y) == 8
    assert y.get() == 8
    assert bool(y == 8)
    cp.nonzero(x)
    x[x > 0]
    cp.cuda.Stream.null.synchronize()
    assert record.synchronizations == 6
    assert record.downloads == 3


def test_bfloat16(cp: Any) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = cp.arange(400, dtype="f4").astype(ml_dtypes.bfloat16)
    assert (x + x).dtype == ml_dtypes.bfloat16
    # 400 ones would stop at 256 if bfloat16 added them.
    assert float(cp.ones(400, ml_dtypes.bfloat16).sum()) == 400


def test_dlpack_says_cuda(cp: Any) -> None:
    x = cp.arange(6, dtype="f4").reshape(2, 3)[:, 1:]
    assert x.__dlpack_device__() == (2, 0)
    y = cp.from_dlpack(x)
    assert (y.data.ptr, y.strides) == (x.data.ptr, x.strides)
    with pytest.raises((BufferError, RuntimeError)):
        np.from_dlpack(x)
    assert x.__cuda_array_interface__["data"] == (x.data.ptr, False)
    assert cp.asarray(Interface(x)).data.ptr == x.data.ptr


class Interface:
    def __init__(self, x: Any) -> None:
        self.__cuda_array_interface__ = x.__cuda_array_interface__
        self.keep = x


# Memory, devices, streams, graphs.


def test_out_of_memory_and_the_pool(cp: Any) -> None:
    pool = cp.get_default_memory_pool()
    pool.free_all_blocks()
    used = pool.used_bytes()
    with settings.using(device_memory=used + 10_000), cp.cuda.using_allocator(pool.malloc):
        x = cp.empty(1000, "f8")
        assert pool.used_bytes() == used + 8192
        with pytest.raises(MemoryError):
            cp.empty(1000, "f8")
        del x
        assert pool.used_bytes() == used
        cp.empty(1000, "f8")
    own = cp.cuda.MemoryPool()
    with cp.cuda.using_allocator(own.malloc):
        y = cp.empty(100, "u1")
    assert (y.nbytes, own.used_bytes()) == (100, 512)
    assert pool.used_bytes() == used


def test_copies_are_checked(cp: Any) -> None:
    runtime = cp.cuda.runtime
    import cupyx

    host = cupyx.empty_pinned(4, "f4")
    host[:] = 7
    x = cp.zeros(4, "f4")
    stream = cp.cuda.Stream(non_blocking=True)
    runtime.memcpyAsync(x.data.ptr, host.ctypes.data, 16, runtime.memcpyHostToDevice, stream.ptr)
    assert record.operations[-1] == ("copy", "HtoD", 16, stream.ptr)
    assert x.tolist() == [7] * 4
    for target, source, size, kind in (
        (x.data.ptr, host.ctypes.data, 20, 1),
        (x.data.ptr, host.ctypes.data, 16, 2),
        (host.ctypes.data, x.data.ptr, 16, 3),
        (x.data.ptr + 4, x.data.ptr, 16, 3),
    ):
        with pytest.raises(runtime.CUDARuntimeError):
            runtime.memcpyAsync(target, source, size, kind, stream.ptr)
    runtime.memsetAsync(x.data.ptr, 0, 16, stream.ptr)
    x.data.copy_to_host_async(host.ctypes.data_as(ctypes.c_void_p), 16, stream)
    assert host.tolist() == [0] * 4


def test_devices(cp: Any) -> None:
    assert cp.cuda.runtime.getDeviceCount() == 1
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError):
        cp.cuda.Device(1).use()
    with settings.using(device_count=2):
        with cp.cuda.Device(1):
            x = cp.ones(3)
        assert x.device.id == 1
        assert cp.cuda.Device().id == 0
    assert cp.cuda.Device().compute_capability == "90"


def test_graph_capture(cp: Any) -> None:
    stream, other = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)
    x, y = cp.ones(3, "f4"), cp.zeros(3, "f4")
    with stream:
        stream.begin_capture()
        z = x * 2
        y += z
        fork = stream.record()
        other.wait_event(fork)
        with other:
            y *= 3
        stream.wait_event(other.record())
        for refused in (lambda: float(x[0]), x.get, lambda: cp.asarray(np.ones(3)), cp.nonzero):
            with pytest.raises((cp.cuda.runtime.CUDARuntimeError, TypeError)):
                refused()
        with pytest.raises(NotImplementedError):
            x @ y
        graph = stream.end_capture()
    assert y.tolist() == [0] * 3  # nothing ran
    assert np.isnan(z.get()).all()
    graph.launch(stream)
    assert y.tolist() == [6] * 3
    x[...] = 2
    graph.launch(stream)
    assert y.tolist() == [30] * 3
    del z
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="freed"):
        graph.launch(stream)


def test_a_graph_in_pieces_of_an_allocation(cp: Any) -> None:
    stream = cp.cuda.Stream(non_blocking=True)
    allocations = [cp.cuda.alloc(1024)]

    def malloc(size: int) -> Any:
        (whole,) = allocations
        return cp.cuda.MemoryPointer(cp.cuda.UnownedMemory(whole.ptr, size, whole), 0)

    x = cp.zeros((2, 2), "f4")
    with stream:
        stream.begin_capture()
        with cp.cuda.using_allocator(malloc):
            y = cp.ascontiguousarray(cp.broadcast_to(x[:1], (2, 2)))
        x += y
        del y  # the graph needs the allocation, not the array
        x += 1
        graph = stream.end_capture()
    graph.launch(stream)
    graph.launch(stream)
    assert x.tolist() == [[3, 3], [3, 3]]
    allocations.clear()
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="freed"):
        graph.launch(stream)


def test_graph_with_an_unjoined_stream(cp: Any) -> None:
    stream, other = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)
    y = cp.zeros(3, "f4")
    stream.begin_capture()
    other.wait_event(stream.record())
    with other:
        y += 1
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="did not wait"):
        stream.end_capture()
    assert not other.is_capturing()


def test_streams_without_an_event_between_them(cp: Any) -> None:
    one, two = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)
    with settings.using(check_streams=True):
        x = cp.zeros(8, "f4")
        cp.cuda.Device().synchronize()
        with one:
            x[:4] += 1
        with two:
            x[4:] += 1  # other bytes
            with pytest.raises(StreamError, match="wait for an event"):
                x.sum()
            two.wait_event(one.record())
            assert x.sum().item() == 8
            x += 1
        with one, pytest.raises(StreamError):
            x.copy()
        two.synchronize()
        with one:
            y = x * 2
        one.synchronize()
        with two:
            y *= 2
        del y  # belongs to stream one, which has not waited for two
        with pytest.raises(StreamError, match="freed while"):
            x += 1


def test_threads_that_share_a_stream_are_in_order_each(cp: Any) -> None:
    """Ranks are such threads: none of them may undo what another counts."""
    turn = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with settings.using(check_streams=True), ThreadPoolExecutor(4) as threads:

            def work(x: Any) -> None:
                accesses = [x._access(writes=True)]
                for _ in range(30000):
                    ordering.begin("write", 0, accesses)

            list(threads.map(work, [cp.zeros(4, "f4") for _ in range(4)]))
    finally:
        sys.setswitchinterval(turn)


def test_what_was_done_before_streams_are_checked_is_done(cp: Any) -> None:
    x, other = cp.zeros(8, "f4"), cp.cuda.Stream(non_blocking=True)
    with ordering.checked():
        y = x * 2
        cp.cuda.Device().synchronize()
        with other:
            x += 1
            y += 1
    x *= 2
    with ordering.checked():
        assert x.sum().item() == 16
        del y

    def freed_too_early() -> None:
        with ordering.checked():
            y = x * 2
            cp.cuda.Device().synchronize()
            with other:
                y *= 2
            del y

    with pytest.raises(StreamError, match="freed while"):
        freed_too_early()


def test_the_null_stream_waits_for_blocking_streams(cp: Any) -> None:
    blocking = cp.cuda.Stream()
    with settings.using(check_streams=True):
        x = cp.zeros(8, "f4")
        with blocking:
            x += 1
        assert x.sum().item() == 8


# Kernels.


@needs_compiler
def test_vector_add(cp: Any) -> None:
    n = 1000
    host = np.random.default_rng(0).normal(size=(2, n)).astype("f4")
    x, y = cp.asarray(host[0]), cp.asarray(host[1])
    out = cp.empty(n, "f4")
    stream = cp.cuda.Stream()
    kernel(cp, ADD)((4,), (256,), (x, y, out, np.int32(n), np.float32(0.5)), stream=stream)
    np.testing.assert_array_equal(out.get(), host[0] + np.float32(0.5) * host[1])
    assert ("kernel", "f", stream.ptr) in record.operations
    assert record.kernels()[-1] == "f"


REDUCE = """
__global__ void f(const float* x, double* out, int n) {
    __shared__ double part[32];
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
    for (int d = 16; d > 0; d /= 2) sum += __shfl_down_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    sum = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0.0;
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (threadIdx.x == 0) *out = sum;
}
"""


@needs_compiler
@pytest.mark.parametrize("threads", [32, 256, 1024])
def test_block_reduction(cp: Any, threads: int) -> None:
    x = cp.arange(5000, dtype="f4")
    out = cp.empty((), "f8")
    with settings.using(check_races=True):
        kernel(cp, REDUCE)((1,), (threads,), (x, out, 5000))
    assert out.item() == 5000 * 4999 / 2


@needs_compiler
def test_a_missing_barrier_is_a_race(cp: Any) -> None:
    code = """__global__ void f(float* x) {
        __shared__ float s[64];
        s[threadIdx.x] = x[threadIdx.x];
        BARRIER
        x[threadIdx.x] = s[63 - threadIdx.x];
    }"""
    x = cp.arange(64, dtype="f4")
    with settings.using(check_races=True):
        kernel(cp, code.replace("BARRIER", "__syncthreads();"))((1,), (64,), (x,))
        assert x.tolist() == list(range(63, -1, -1))
        with pytest.raises(RaceError):
            kernel(cp, code.replace("BARRIER", ""))((1,), (64,), (x,))


@needs_compiler
def test_atomics(cp: Any) -> None:
    code = """__global__ void f(unsigned* count, float* sum, int* most, unsigned long long* all) {
        unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
        atomicAdd(count + i % 3, 1u);
        atomicAdd(sum, 0.5f);
        atomicMax(most, (int)i);
        atomicOr(all, 1ull << (i % 64));
    }"""
    count, total = cp.zeros(3, "u4"), cp.zeros(1, "f4")
    most, bits = cp.zeros(1, "i4"), cp.zeros(1, "u8")
    kernel(cp, code)((3,), (100,), (count, total, most, bits))
    assert count.tolist() == [100, 100, 100]
    assert (total.item(), most.item(), bits.item()) == (150, 299, 2**64 - 1)


@needs_compiler
def test_warp_functions(cp: Any) -> None:
    code = """__global__ void f(int* out) {
        int lane = threadIdx.x, *row = out + lane * 8;
        row[0] = __shfl_up_sync(~0u, lane, 1);
        row[1] = __shfl_sync(~0u, lane, 3, 8);
        row[2] = __ballot_sync(~0u, lane % 2) == 0xaaaaaaaau;
        row[3] = __any_sync(~0u, lane == 5) && !__any_sync(~0u, lane > 40);
        row[4] = __all_sync(~0u, lane < 32) && !__all_sync(~0u, lane < 31);
        row[5] = __popc(__match_any_sync(~0u, lane / 4));
        row[6] = __reduce_add_sync(~0u, lane);
        row[7] = lane < 16 ? __shfl_xor_sync(0xffffu, lane, 1) : __syncthreads_count(1);
        if (lane < 16) __syncthreads();
    }"""
    with pytest.raises(KernelError, match="different __syncthreads"):
        kernel(cp, code)((1,), (32,), (cp.empty((32, 8), "i4"),))
    out = cp.empty((32, 8), "i4")
    code = code.replace("if (lane < 16) __syncthreads();", "").replace(
        "__syncthreads_count(1)", "7"
    )
    kernel(cp, code)((1,), (32,), (out,))
    lane = np.arange(32)
    one = np.ones(32)
    expected = [np.maximum(lane - 1, 0), lane // 8 * 8 + 3, one, one, one, 4 * one, 496 * one]
    expected.append(np.where(lane < 16, lane ^ 1, 7))
    np.testing.assert_array_equal(out.get(), np.stack(expected, 1))


HALF = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" __global__ void f(const float* x, half* h, __nv_bfloat16* b, float* hx, float* bx, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    h[i] = __float2half(x[i]);
    b[i] = __float2bfloat16(x[i]);
    hx[i] = __half2float(h[i]);
    bx[i] = (float)b[i];
}
"""


@needs_compiler
def test_half_and_bfloat16_round_as_numpy(cp: Any) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    random = np.random.default_rng(1)
    bits = random.integers(0, 2**32, 50_000, dtype=np.uint32).view("f4")
    near = (2.0 ** random.uniform(-26, 17, 50_000)).astype("f4")
    ties = np.arange(0, 4096, dtype="f4") / 2**25
    host = np.concatenate([bits, near, -near, ties, np.float32([0, -0.0, 65519, 65520, np.inf])])
    host = host[~np.isnan(host)]
    x = cp.asarray(host)
    half, brain = cp.empty(x.shape, "f2"), cp.empty(x.shape, ml_dtypes.bfloat16)
    wide, wide_brain = cp.empty_like(x), cp.empty_like(x)
    grid = (-(-x.size // 256),)
    module = cp.RawModule(code=HALF)
    args = (x, half, brain, wide, wide_brain, np.int32(x.size))
    module.get_function("f")(grid, (256,), args)
    with np.errstate(over="ignore"):
        expected, expected_brain = host.astype("f2"), host.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(half.get().view("u2"), expected.view("u2"))
    np.testing.assert_array_equal(brain.get().view("u2"), expected_brain.view("u2"))
    np.testing.assert_array_equal(wide.get(), expected.astype("f4"))
    np.testing.assert_array_equal(wide_brain.get(), expected_brain.astype("f4"))


@needs_compiler
def test_templates_structures_and_dynamic_shared_memory(cp: Any) -> None:
    code = """
    struct Scale { float factor; int shift; };
    template <class T, int N> __global__ void f(T* x, Scale s) {
        extern __shared__ unsigned char raw[];
        T* t = reinterpret_cast<T*>(raw);
        t[threadIdx.x] = x[threadIdx.x];
        __syncthreads();
        x[threadIdx.x] = T(N) * t[(threadIdx.x + s.shift) % blockDim.x] * T(s.factor);
    }"""
    names = ["f<float, 2>", "f<double, 3>"]
    module = cp.RawModule(code=code, name_expressions=names)
    scale = np.array((0.5, 1), np.dtype([("factor", "f4"), ("shift", "i4")]))
    for name, dtype, factor in zip(names, ("f4", "f8"), (2, 3), strict=True):
        x = cp.arange(64, dtype=dtype)
        function = module.get_function(name)
        function((1,), (64,), (x, scale), shared_mem=64 * x.itemsize)
        expected = factor * 0.5 * np.roll(np.arange(64), -1)
        np.testing.assert_array_equal(x.get(), expected)
        with pytest.raises(KernelError, match="dynamic shared memory"):
            function((1,), (64,), (x, scale[()]), shared_mem=60 * x.itemsize)
    with pytest.raises(TypeError, match="structure of 4 bytes"):
        function((1,), (64,), (x, np.zeros((), [("factor", "f4")])), shared_mem=512)


@needs_compiler
@pytest.mark.parametrize("guard_pages", [False, True])
def test_writes_outside_of_an_array_are_found(cp: Any, guard_pages: bool) -> None:
    with settings.using(guard_pages=guard_pages):
        write = kernel(cp, "__global__ void f(float* x, long long at) { x[at] = 1; }")
        x = cp.empty(100, "f4")
        write((1,), (1,), (x, 99))
        for at in (-1, 100, 110):
            with pytest.raises(KernelError, match=r"wrote|illegal address"):
                write((1,), (1,), (x, at))
        with pytest.raises(KernelError, match="illegal address"):
            write((1,), (1,), (None, 0))
        if guard_pages:
            read = kernel(cp, "__global__ void f(float* x, int n) { x[0] = x[n]; }")
            with pytest.raises(KernelError, match="illegal address"):
                read((1,), (1,), (x, 100))


@needs_compiler
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("__shared__ float s[8]; s[threadIdx.x] = 1;", "index 8 is outside"),
        ("*(float4*)(x + 1) = make_float4(0, 0, 0, 0);", "misaligned address"),
        ("if (threadIdx.x < 8) __syncthreads(); else { __syncwarp(0xffu); }", "does not name it"),
        ("if (threadIdx.x < 8) __syncwarp(~0u); else __syncthreads();", "deadlock"),
        ("x[0] = __shfl_sync(0xffu, 1.0f, 0);", "does not name it"),
        ("x[0] = 1 << (threadIdx.x + 30);", "shift"),
        ("x[0] = 1 / (int)(threadIdx.x - 3);", "division by zero"),
        ("assert(threadIdx.x < 4);", "assertion failed"),
    ],
)
def test_what_a_device_would_get_wrong(cp: Any, body: str, message: str) -> None:
    wrong = kernel(cp, "__global__ void f(float* x) {" + body + "}")
    x = cp.zeros(64, "f4")
    with pytest.raises(KernelError, match=message):
        wrong((1,), (16,), (x,))
    # The next launch is sound.
    test_vector_add(cp)


@needs_compiler
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda cp, a: a[:-1], "takes 5 arguments, got 4"),
        (lambda cp, a: [*a, 1], "takes 5 arguments, got 6"),
        (lambda cp, a: [*a[:4], 0.5], "argument 5 is .*float64.* but the parameter is float"),
        (lambda cp, a: [*a[:4], 2], "argument 5 is .*int64"),
        (lambda cp, a: [*a[:3], np.float32(3), a[4]], "argument 4 is .*parameter is int"),
        (lambda cp, a: [*a[:3], 2**40, a[4]], "argument 4"),
        (lambda cp, a: [*a[:3], np.int16(3), a[4]], "argument 4 is .*2 bytes"),
        (lambda cp, a: [a[0].astype("f8"), *a[1:]], "argument 1 is an array of float64"),
        (lambda cp, a: [a[0].astype("i4"), *a[1:]], "argument 1 is an array of int32"),
        (lambda cp, a: [a[0].get(), *a[1:]], "argument 1 is a numpy.ndarray"),
        (lambda cp, a: [3.0, *a[1:]], "argument 1 is a float"),
        (lambda cp, a: [*a[:3], a[0], a[4]], "argument 4 is a ndarray"),
        (lambda cp, a: [*a[:4], "1"], "Unsupported type"),
    ],
)
def test_arguments_are_checked(cp: Any, change: Any, error: str) -> None:
    x = cp.ones(8, "f4")
    args = [x, x, cp.empty(8, "f4"), 8, np.float32(1)]
    add = kernel(cp, ADD)
    add((1,), (8,), args)
    with pytest.raises(TypeError, match=error):
        add((1,), (8,), change(cp, args))


@needs_compiler
def test_addresses_are_arguments_while_their_memory_lives(cp: Any) -> None:
    x, out = cp.ones(8, "f4"), cp.empty(8, "f4")
    add = kernel(cp, ADD)
    add((1,), (8,), (x.data.ptr, x.data, out.data.ptr, 8, np.float32(1)))
    assert out.tolist() == [2] * 8
    address = x.data.ptr
    del x
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="freed"):
        add((1,), (8,), (address, out, out, 8, np.float32(1)))


@needs_compiler
def test_memory_behind_a_table_of_pointers_is_watched(cp: Any) -> None:
    code = "__global__ void f(float** tables, int at) { tables[threadIdx.x][at] += 1; }"
    x, y = cp.zeros(8, "f4"), cp.zeros(8, "f4")
    table = cp.asarray(np.array([x.data.ptr, y.data.ptr], np.uint64))
    increment = kernel(cp, code)
    with settings.using(check_races=True):
        increment((1,), (2,), (table, 3))
    assert (x.sum().item(), y.sum().item()) == (1, 1)
    with pytest.raises(KernelError, match=r"wrote byte 1 behind .*; wrote byte 1 behind"):
        increment((1,), (2,), (table, 8))


@needs_compiler
def test_limits_of_a_launch(cp: Any) -> None:
    error = cp.cuda.runtime.CUDARuntimeError
    function = kernel(cp, "__global__ void f() {}")
    for grid, block in (((1,), (1025,)), ((1,), (32, 33)), ((1, 65536), (1,)), ((1,), (1, 1, 65))):
        with pytest.raises(error, match="too large"):
            function(grid, block, ())
    with pytest.raises(TypeError):
        function(1, (1,), ())
    function((1,), (1024,), (), shared_mem=48 * 1024)
    with pytest.raises(error, match="max_dynamic_shared_size_bytes"):
        function((1,), (1,), (), shared_mem=48 * 1024 + 1)
    function.max_dynamic_shared_size_bytes = 227 * 1024
    function((1,), (1,), (), shared_mem=227 * 1024)
    with pytest.raises(error):
        function.max_dynamic_shared_size_bytes = 227 * 1024 + 1
    bounded = kernel(cp, "__global__ void __launch_bounds__(128) f() {}")
    with pytest.raises(error, match="__launch_bounds__"):
        bounded((1,), (256,), ())
    assert bounded.max_threads_per_block == 128
    static = """__global__ void f(float* x) {
        __shared__ float s[%d]; s[threadIdx.x] = x[0]; __syncthreads(); x[1] = s[0];
    }"""
    assert kernel(cp, static % 1000).shared_size_bytes == 4000
    with pytest.raises(error, match="static shared memory"):
        kernel(cp, static % 12289)


@needs_compiler
def test_errors_of_the_compiler(cp: Any) -> None:
    with pytest.raises(cp.cuda.compiler.CompileException, match=r"kernel.cu:2.*missing"):
        kernel(cp, "\n__global__ void f() { missing(); }")
    mangled = cp.RawModule(code="__global__ void f() {}")
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match='extern "C"'):
        mangled.get_function("f")


@needs_compiler
def test_shared_memory_begins_as_garbage_in_each_block(cp: Any) -> None:
    code = """__global__ void f(float* out) {
        __shared__ float s[2]; out[blockIdx.x] = s[0]; s[0] = 1;
    }"""
    out = cp.zeros(3, "f4")
    kernel(cp, code)((3,), (1,), (out,))
    assert np.isnan(out.get()).all()


@needs_compiler
def test_float32_denormals_are_zero_and_products_are_not_fused(cp: Any) -> None:
    code = "__global__ void f(float* x, float a, float b, float c) { x[0] = a * b + c; x[1] *= b; }"
    a, c = np.float32(1 + 2**-12), np.float32(-1 - 2**-11)
    x = cp.asarray(np.float32([0, 1e-39]))
    kernel(cp, code)((1,), (1,), (x, a, a, c))
    assert x[0].item() == a * a + c
    if platform.machine() == "x86_64":
        assert x[1].item() == 0
    assert float(np.float64(a) * np.float64(a) + np.float64(c)) != float(a * a + c)


@needs_compiler
def test_kernels_in_a_graph(cp: Any) -> None:
    stream = cp.cuda.Stream(non_blocking=True)
    x, out = cp.ones(8, "f4"), cp.zeros(8, "f4")
    add = kernel(cp, ADD)
    stream.begin_capture()
    add((1,), (8,), (x, out, out, 8, np.float32(1)), stream=stream)
    graph = stream.end_capture()
    assert out.tolist() == [0] * 8
    graph.launch(stream)
    graph.launch(stream)
    assert out.tolist() == [2] * 8
