"""Products of matrices on a GPU against NumPy in float64, by each of the libraries."""

from __future__ import annotations

import sys
from unittest.mock import ANY

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F
from distnn.context import current_backend
from distnn.errors import ContextError
from distnn.formula import Formula
from distnn.formula_chain import Chain, Joined, Link
from distnn.functions.affine import Affine

pytestmark = pytest.mark.usefixtures("gpu")

RTOL = {"e": 2e-3, "f": 2e-6, "d": 1e-13}


@pytest.fixture
def emulated():
    """The emulator, for tests of what is queued on the device."""
    import gpu_emulator

    if not gpu_emulator.installed():
        pytest.skip("looks into the emulator")
    gpu_emulator.record.clear()
    return gpu_emulator.record


def forget():
    """Whether cuBLASLt is there was not asked, and it made no plan."""
    from distnn.cuda import cublaslt

    for cache in (cublaslt.available, cublaslt._library, cublaslt._handle):
        cache.cache_clear()
    cublaslt._local.__dict__.clear()


@pytest.fixture
def cublaslt(emulated, monkeypatch):
    """cuBLASLt is there: a stand-in for nvmath-python."""
    import fake_cublaslt

    yield from fake_cublaslt.installed(monkeypatch)


@pytest.fixture
def cublas(monkeypatch):
    """cuBLASLt is switched off."""
    monkeypatch.setenv("DISTNN_CUBLASLT", "0")
    forget()
    yield
    forget()


@pytest.fixture(params=["cublas", "cublaslt"])
def library(request, monkeypatch):
    """On a GPU the real ones."""
    import gpu_emulator

    if request.param == "cublas" or gpu_emulator.installed():
        request.getfixturevalue(request.param)
    else:
        pytest.importorskip("nvmath")
        monkeypatch.delenv("DISTNN_CUBLASLT", raising=False)
        forget()
    return request.param


def values(shape, dtype="f", seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(dtype)


def device(array):
    import cupy

    return cupy.asarray(array)


def queued(record):
    """Names of what ran on the device; views are no work there."""
    names = [entry[1] for entry in record.operations if entry[0] in ("kernel", "function")]
    return [name for name in names if name not in ("reshape", "swapaxes")]


def close(found, wanted, dtype, terms=1):
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    scale = RTOL[np.dtype(dtype).char] * np.sqrt(terms) * (np.abs(wanted).max(initial=0) + 1)
    np.testing.assert_allclose(found.get().astype(np.float64), wanted, rtol=0, atol=scale)


def check(a, b, out=None, precision="highest"):
    from distnn.cuda.matmul import matmul

    # .get() of a view is a copy of its values: the host sees what the product should see.
    wanted = np.matmul(a.get().astype(np.float64), b.get().astype(np.float64))
    found = matmul(a, b, out, precision)
    assert out is None or found is out
    close(found, wanted, a.dtype, a.shape[-1])


# -- numbers ----------------------------------------------------------------------------------

SHAPES = [
    ((3, 4), (4, 5)),
    ((1, 1), (1, 1)),
    ((1, 7), (7, 1)),
    ((7, 1), (1, 5)),
    ((1, 7), (7, 3)),
    ((3, 7), (7, 1)),
    ((2, 3, 4), (2, 4, 5)),
    ((6, 3, 4), (4, 5)),
    ((3, 4), (6, 4, 5)),
    ((1, 3, 4), (6, 4, 5)),
    ((6, 3, 4), (1, 4, 5)),
    ((2, 1, 3, 4), (1, 5, 4, 2)),
    ((2, 3, 2, 4), (3, 4, 2)),
    ((2, 3, 1, 4), (2, 1, 4, 2)),
    ((5, 1, 4), (4, 3)),
    ((0, 3), (3, 2)),
    ((2, 0), (0, 3)),
    ((3, 2), (2, 0)),
    ((0, 2, 3), (0, 3, 2)),
    ((4, 2, 0), (4, 0, 3)),
]


@pytest.mark.parametrize("dtype", "efd")
@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_products(a, b, dtype, library):
    check(device(values(a, dtype, 1)), device(values(b, dtype, 2)))


@pytest.mark.parametrize("dtype", "efd")
@pytest.mark.parametrize("swap_b", [False, True])
@pytest.mark.parametrize("swap_a", [False, True])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_transposed_views_are_not_copied(batch, swap_a, swap_b, dtype, library, emulated):
    a = device(values((*batch, 4, 6) if swap_a else (*batch, 6, 4), dtype, 1))
    b = device(values((*batch, 5, 4) if swap_b else (*batch, 4, 5), dtype, 2))
    a = a.swapaxes(-1, -2) if swap_a else a
    b = b.swapaxes(-1, -2) if swap_b else b
    out = device(np.full((*batch, 6, 5), np.nan, dtype))
    wanted = np.matmul(a.get().astype(np.float64), b.get().astype(np.float64))
    emulated.clear()
    from distnn.cuda.matmul import matmul

    assert matmul(a, b, out) is out
    assert [entry[0] for entry in emulated.operations] == ["function"]
    close(out, wanted, dtype, 4)


VIEWS = {
    "every second row": lambda x: x[..., ::2, :],
    "every second column": lambda x: x[..., ::2],
    "part of the columns": lambda x: x[..., 1:4],
    "rows backwards": lambda x: x[..., ::-1, :],
    "columns backwards": lambda x: x[..., ::-1],
    "batch backwards": lambda x: x[::-1],
    "batch axis in the middle": lambda x: x.swapaxes(0, 1),
    "batch axis last": lambda x: x.transpose(1, 2, 0),
    "every second matrix": lambda x: x[::2],
    "one row": lambda x: x[..., :1, :],
    "one column": lambda x: x[..., 2:3],
    "one column by columns": lambda x: x[..., 2:3, :].swapaxes(-1, -2),
    "a part by columns": lambda x: x.swapaxes(-1, -2)[..., 1:3],
}


@pytest.mark.parametrize("dtype", "ef")
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_any_view_is_an_operand(view, dtype, library):
    x = view(device(values((4, 6, 5), dtype)))
    check(x, device(values((x.shape[-1], 3), dtype, 1)))
    check(x, device(values((*x.shape[:-2], x.shape[-1], 3), dtype, 1)))
    check(device(values((3, x.shape[-2]), dtype, 2)), x)
    check(x, x.swapaxes(-1, -2))


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_any_view_is_a_result(view, library):
    memory = device(np.full((4, 6, 5), 7, np.float32))
    out = view(memory)
    untouched = memory.get()
    view(untouched)[...] = 0
    a = device(values((*out.shape[:-1], 3), seed=1))
    b = device(values((*out.shape[:-2], 3, out.shape[-1]), seed=2))
    check(a, b, out)
    out[...] = 0
    np.testing.assert_array_equal(memory.get(), untouched)


def test_square_matrices_by_columns_are_no_rows_of_one_product(library):
    x = device(values((3, 4, 4)))
    check(x.swapaxes(1, 2), device(values((4, 4))))
    check(x.swapaxes(1, 2), device(values((4, 4))).T)


def test_broadcast_arrays_are_operands(library):
    import cupy

    x = device(values((6, 5)))
    check(cupy.broadcast_to(x, (3, 6, 5)), device(values((3, 5, 2))))
    check(cupy.broadcast_to(device(values((5,))), (6, 5)), device(values((5, 2))))
    check(device(values((2, 6))), cupy.broadcast_to(device(values((6, 1))), (6, 5)))


@pytest.mark.parametrize("view", ["contiguous", "strided"])
def test_bfloat16(library, view):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    from distnn.cuda.matmul import matmul

    a, b = (device(values(s).astype(ml_dtypes.bfloat16)) for s in ((9, 40), (40, 3)))
    if view == "strided":
        a, b = a[::2], b[:, ::2]
    wanted = a.get().astype(np.float64) @ b.get().astype(np.float64)
    found = matmul(a, b)
    assert found.dtype == ml_dtypes.bfloat16
    # Products of bfloat16 are exact in float32: one rounding, to 8 bits, at the end.
    np.testing.assert_allclose(found.get().astype(np.float64), wanted, rtol=2**-8, atol=1e-4)


def test_half_precision_adds_up_in_float32(library):
    from distnn.cuda.matmul import matmul

    a = device(np.full((2, 4096), 0.5, np.float16))
    found = matmul(a, device(np.full((4096, 2), 0.5, np.float16)))
    np.testing.assert_array_equal(found.get(), np.full((2, 2), 1024, np.float16))


def test_accumulation_into_float32(library):
    from distnn.cuda.matmul import multiply

    a, b = values((3, 4), "e", 1), values((4, 2), "e", 2)
    out = device(np.full((3, 2), 10, np.float32))
    multiply(device(a), device(b), out, False, accumulate=True)
    close(out, 10 + a.astype(np.float64) @ b.astype(np.float64), np.float32, 4)
    multiply(device(a[:, :0]), device(b[:0]), out, False, accumulate=True)
    close(out, 10 + a.astype(np.float64) @ b.astype(np.float64), np.float32, 4)


def test_accumulation_into_any_view(library):
    from distnn.cuda.matmul import multiply

    a, b = values((3, 4)), values((4, 3), seed=1)
    for view in (lambda x: x.T, lambda x: x[:, ::2], lambda x: x[::-1, 3:]):
        memory = device(np.full((3, 6), 10, np.float32))
        memory = memory[:, :3] if view(memory).shape == (6, 3) else memory
        multiply(device(a), device(b), view(memory), False, accumulate=True)
        close(view(memory), 10 + a.astype(np.float64) @ b, np.float32, 4)


# -- what is asked of the libraries -----------------------------------------------------------


def test_precision_decides_on_tf32(library, emulated):
    from gpu_emulator.cublas import tf32

    from distnn.cuda.matmul import matmul

    a, b = values((3, 50)), values((50, 4), seed=1)
    exact, rounded = a.astype(np.float64) @ b, tf32(a).astype(np.float64) @ tf32(b)
    assert np.abs(exact - rounded).max() > 1e-4
    close(matmul(device(a), device(b)), exact, np.float32, 10)
    close(matmul(device(a), device(b), precision="tf32"), rounded, np.float32, 10)
    # Other dtypes have one precision.
    a, b = a.astype(np.float64), b.astype(np.float64)
    close(matmul(device(a), device(b), precision="tf32"), a @ b, np.float64, 10)


@pytest.mark.parametrize(
    ("a", "b", "calls"),
    [
        ((8, 3, 4), (4, 5), ["gemmEx"]),  # more rows of one product
        ((2, 8, 3, 4), (4, 5), ["gemmEx"]),
        ((3, 4), (8, 4, 5), ["gemmStridedBatchedEx"]),
        ((8, 3, 4), (8, 4, 5), ["gemmStridedBatchedEx"]),
        ((2, 8, 3, 4), (2, 8, 4, 5), ["gemmStridedBatchedEx"]),
        ((2, 8, 3, 4), (2, 1, 4, 5), ["gemmStridedBatchedEx"]),  # rows again, and a batch
        ((2, 1, 3, 4), (1, 8, 4, 5), ["gemmStridedBatchedEx"] * 2),  # the longer axis is the batch
    ],
)
def test_few_calls(a, b, calls, emulated, cublas):
    from distnn.cuda.matmul import matmul

    a, b = device(values(a)), device(values(b))
    emulated.clear()
    matmul(a, b)
    assert [entry[1] for entry in emulated.operations] == calls


def test_our_handle_forbids_sums_in_half_precision(emulated, cublas):
    from gpu_emulator.cublas import modes

    from distnn.cuda.matmul import matmul

    matmul(device(values((2, 2), "e")), device(values((2, 2), "e")))
    assert 16 in modes.values()


def test_without_cublas_the_error_says_what_to_install(emulated, cublas, monkeypatch):
    import cupy

    from distnn.cuda.cublas import _library
    from distnn.cuda.matmul import matmul

    _library.cache_clear()
    monkeypatch.delattr(cupy.cuda, "cublas", raising=False)
    monkeypatch.setitem(sys.modules, "cupy.cuda.cublas", None)
    with pytest.raises(ContextError, match=r"cannot load cuBLAS .*pip install 'distnn\[cuda13\]'"):
        matmul(device(values((2, 2))), device(values((2, 2))))


def test_cublaslt_is_asked_once_per_problem(cublaslt):
    from distnn.cuda.matmul import matmul

    for seed in range(3):
        matmul(device(values((4, 8), seed=seed)), device(values((8, 4))))
    assert len(cublaslt.queries) == 1
    assert len(cublaslt.calls) == 3
    matmul(device(values((4, 8))), device(values((4, 8))).T)
    matmul(device(values((4, 8))), device(values((8, 4))), precision="tf32")
    assert len(cublaslt.queries) == 3


def test_cublaslt_is_told_how_addresses_are_aligned(cublaslt):
    from distnn.cuda.matmul import matmul

    memory = device(values((40,)))
    b = device(values((4, 4)))
    for start, alignment in ((0, 16), (4, 16), (1, 4)):
        a = memory[start : start + 16].reshape(4, 4)
        wanted = a.get().astype(np.float64) @ b.get()
        close(matmul(a, b), wanted, np.float32, 4)
        assert cublaslt.queries[-1][1] == alignment


def test_cublas_computes_what_cublaslt_has_no_algorithm_for(cublaslt, emulated):
    cublaslt.nothing_for.add(1)
    a, b = device(values((4, 8), "d")), device(values((8, 4), "d"))
    emulated.clear()
    check(a, b)
    assert "gemmEx" in [entry[1] for entry in emulated.operations]
    assert not cublaslt.calls


def test_cublaslt_can_be_switched_off(cublaslt, cublas):
    check(device(values((4, 8))), device(values((8, 4))))
    assert not cublaslt.calls


def test_cublaslt_can_be_captured(cublaslt):
    import cupy

    from distnn.cuda.matmul import multiply

    a, b, bias = device(values((4, 8))), device(values((8, 4))), device(values((4,)))
    out = device(np.zeros((4, 4), np.float32))
    multiply(a, b, out, False, bias=bias)  # chooses the algorithm
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        multiply(a, b, out, False, bias=bias)
        graph = stream.end_capture()
    a *= 2
    graph.launch(stream)
    stream.synchronize()
    close(out, a.get().astype(np.float64) @ b.get() + bias.get(), np.float32, 8)


# -- the affine map ---------------------------------------------------------------------------


def leaf(shape, seed):
    x = nn.Variable.from_numpy_array(values(shape, seed=seed))
    x.need_grad = True
    return x


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("x", "w", "base_axis"),
    [
        ((3, 4), (4, 5), 1),
        ((2, 3, 4), (12, 5), 1),
        ((2, 3, 4), (4, 2, 3), 2),
        ((2, 3), (6, 5), 0),
        ((70, 9), (9, 65), 1),
        ((0, 4), (4, 5), 1),
    ],
)
def test_affine(x, w, base_axis, bias, library):
    x, w = leaf(x, 1), leaf(w, 2)
    b = leaf(w.shape[1:], 3) if bias else None
    y = F.affine(x, w, b, base_axis)
    y.forward()
    rows = (int(np.prod(x.shape[:base_axis])), w.shape[0])
    x2, w2 = x.d.reshape(rows).astype(np.float64), w.d.reshape(w.shape[0], -1).astype(np.float64)
    wanted = x2 @ w2 + (b.d.reshape(-1) if bias else 0)
    np.testing.assert_allclose(y.d.reshape(wanted.shape), wanted, rtol=1e-5, atol=1e-5)
    dy = values(y.shape, seed=4)
    for v in (x, w, b) if bias else (x, w):
        v.grad.zero()
    y.backward(dy)
    dy = dy.reshape(wanted.shape).astype(np.float64)
    close_to = {"rtol": 1e-5, "atol": 2e-5}
    np.testing.assert_allclose(x.g.reshape(rows), dy @ w2.T, **close_to)
    np.testing.assert_allclose(w.g.reshape(w2.shape), x2.T @ dy, **close_to)
    if bias:
        np.testing.assert_allclose(b.g.reshape(-1), dy.sum(axis=0), **close_to)


def test_a_bias_is_one_kernel_or_none(library, emulated):
    x, w, b = leaf((33, 4), 1), leaf((4, 70), 2), leaf((70,), 3)
    y = F.affine(x, w, b)
    y.forward()
    emulated.clear()
    y.forward()
    names = queued(emulated)
    assert (
        names
        == {
            "cublas": ["gemmEx", "add_to_columns"],
            "cublaslt": ["cublasLtMatmul"],
        }[library]
    )


RELU = Chain([Link("r", Formula("maximum(y, 0)", ("y",), ()).tree)], ("y",), (), ("r",))


@pytest.mark.parametrize("dtype", ["e", "E", "f", "d"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("x", "w", "base_axis"), [((3, 4), (4, 5), 1), ((2, 3, 64), (64, 8, 4), 2), ((5, 0), (0, 3), 1)]
)
def test_relu_with_a_product_has_the_bits_of_relu_of_the_product(
    x, w, base_axis, bias, dtype, library
):
    """A NaN, an infinite element, and sums that half precision rounds to 0 among them."""
    import cupy

    from distnn.cuda.elementwise import evaluate
    from distnn.cuda.kernels import FLOATS
    from distnn.cuda.twin import implementation

    if dtype not in FLOATS:
        pytest.skip("bfloat16: pip install ml_dtypes")
    kind = FLOATS[dtype]
    x, w, b = (values(shape, seed=i).astype(kind) for i, shape in enumerate((x, w, w[1:])))
    x[1:2, ..., :1], x[1:2, ..., 1:] = 6e-8, 0
    w[:1] = 0.1 - 0.2 * (np.arange(w[:1].size) % 2).reshape(w[:1].shape)
    x[-1:] = [[np.inf, np.nan][i % 2] if i < 2 else 0 for i in range(x.shape[-1])]
    b.reshape(-1)[: b.size // 2] = 0
    arrays = [device(a) for a in (x, w, *([b] if bias else []))]
    with nn.context_scope(nn.Context(["cudnn:double" if dtype == "d" else "cudnn:float"])):
        xp = current_backend().xp
    twin = implementation(Affine.of(base_axis))
    plain = twin.forward(xp, *arrays)
    wanted = evaluate(
        Formula("maximum(y, 0)", ("y",), ()), {"y": plain}, {}, cupy.empty_like(plain)
    )
    found = cupy.empty_like(plain)
    twin.forward_joined(xp, *arrays, joined=Joined(RELU, (), (), (found,)))
    found, expected = (a.get().astype(np.float64) for a in (found, wanted))
    np.testing.assert_array_equal(found, expected)  # whichever NaN it is
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(found)[number], np.signbit(expected)[number])


def test_an_affine_map_takes_relu_alone():
    from distnn.cuda.twin import implementation

    twin = implementation(Affine.of(1))
    other = Link("r", Formula("maximum(y, 1)", ("y",), ()).tree)
    copy = Link("s", Formula("y", ("y",), ()).tree)
    assert twin.joins(RELU)
    assert not twin.joins(Chain([other], ("y",), (), ("r",)))
    assert not twin.joins(Chain([copy, *RELU.links], ("y",), (), ("s", "r")))


def test_relu_after_a_product_is_one_kernel_or_none(library, emulated):
    import cupy
    import fake_cublaslt

    from distnn.cuda.twin import implementation

    xp, twin = current_backend().xp, implementation(Affine.of(1))
    x, w, b = (device(values(shape)) for shape in ((33, 4), (4, 70), (70,)))
    names = {"cublas": ["gemmEx", "add_to_columns_relu"], "cublaslt": ["cublasLtMatmul"]}
    for arrays, expected in (
        ((x, w, b), names[library]),
        ((x, w), [names[library][0], *([ANY] if library == "cublas" else [])]),
    ):
        joined = Joined(RELU, (), (), (cupy.empty((33, 70), np.float32),))
        twin.forward_joined(xp, *arrays, joined=joined)
        emulated.clear()
        twin.forward_joined(xp, *arrays, joined=joined)
        assert queued(emulated) == expected
    if library == "cublaslt":
        assert len(fake_cublaslt.queries) == 2  # relu takes the algorithm of the product without it
        fake_cublaslt.no_relu_for.add(0)
        forget()
        emulated.clear()
        twin.forward_joined(xp, x, w, b, joined=joined)
        assert queued(emulated) == ["cublasLtMatmul", ANY]


def test_batch_matmul_is_one_call(library, emulated):
    a, b = leaf((5, 4, 3), 1), leaf((5, 4, 6), 2)
    y = F.batch_matmul(a, b, transpose_a=True)
    y.forward()
    emulated.clear()
    y.forward()
    names = queued(emulated)
    assert names == [{"cublas": "gemmStridedBatchedEx", "cublaslt": "cublasLtMatmul"}[library]]
    wanted = a.d.astype(np.float64).swapaxes(1, 2) @ b.d
    np.testing.assert_allclose(y.d, wanted, rtol=1e-5, atol=1e-5)
