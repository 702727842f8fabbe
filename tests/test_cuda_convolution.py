"""Convolution on a GPU against its definition in float64, by cuDNN's graphs and by patches.

cuDNN is a stand-in (fake_cudnn.py) that computes what a graph says on the addresses it is given.
"""

from __future__ import annotations

import itertools
import logging
import sys
import threading
from collections import namedtuple

import numpy as np
import pytest
from cases_convolution import completed, convolution, deconvolution, taps

import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF
from distnn.functions.convolution import Convolution, Deconvolution, FilterGradient
from distnn.functions.im2col import Geometry

pytestmark = pytest.mark.usefixtures("gpu")

RTOL = {"e": 2e-3, "f": 1e-6, "d": 1e-14}


@pytest.fixture
def emulated():
    """The emulator, for tests of what is queued on the device."""
    import gpu_emulator

    if not gpu_emulator.installed():
        pytest.skip("looks into the emulator")
    gpu_emulator.record.clear()
    return gpu_emulator.record


def forget():
    """No plan was made, and whether cuDNN is there was not asked."""
    from distnn import autotune
    from distnn.cuda import cudnn, cudnn_graph

    cudnn.available.cache_clear()
    cudnn_graph.library.cache_clear()
    cudnn._plans.clear()
    cudnn._local.__dict__.clear()
    autotune.choices.clear()
    autotune._loaded = False


@pytest.fixture
def cudnn(emulated, monkeypatch, tmp_path):
    import fake_cudnn

    from distnn import autotune

    monkeypatch.setattr(autotune, "file", lambda: tmp_path / "autotune.json")
    monkeypatch.setitem(sys.modules, "cudnn", fake_cudnn)
    monkeypatch.delenv("DISTNN_CUDNN", raising=False)
    forget()
    for noted in (fake_cudnn.graphs, fake_cudnn.runs, fake_cudnn.unsupported):
        noted.clear()
    yield fake_cudnn
    nn.set_autotune(False)
    forget()


@pytest.fixture
def patches(monkeypatch):
    """cuDNN is switched off."""
    monkeypatch.setenv("DISTNN_CUDNN", "0")
    forget()
    yield
    forget()


@pytest.fixture(params=["patches", "cudnn"])
def engine(request, monkeypatch):
    """On a GPU the real cuDNN."""
    import gpu_emulator

    if request.param == "patches" or gpu_emulator.installed():
        request.getfixturevalue(request.param)
        return
    from distnn.cuda import cudnn

    monkeypatch.delenv("DISTNN_CUDNN", raising=False)
    forget()
    if not cudnn.available():
        pytest.skip("needs cuDNN and cudnn-frontend")


# -- the definition ---------------------------------------------------------------------------


def filter_gradient(dy, x, kernel, pad=(), stride=(), dilation=(), group=1):
    """dw[f, c, k] = sum over n, o of dy[n, f, o] x[n, c, o stride + k dilation - pad]."""
    pad, stride, dilation = completed(len(kernel), pad, stride, dilation)
    padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in pad)])
    filters, channels = dy.shape[1] // group, x.shape[1] // group
    dw = np.zeros((dy.shape[1], channels, *kernel))
    for o in itertools.product(*map(range, dy.shape[2:])):
        window = padded[(..., *taps(o, kernel, stride, dilation))]
        for g in range(group):
            rows = slice(g * filters, (g + 1) * filters)
            seen = window[:, g * channels : (g + 1) * channels].reshape(len(x), -1)
            part = dy[(slice(None), rows, *o)].T @ seen
            dw[rows] += part.reshape(filters, channels, *kernel)
    return dw


def data_gradient(dy, w, x_shape, pad=(), stride=(), dilation=(), group=1):
    pad, stride, dilation = completed(w.ndim - 2, pad, stride, dilation)
    least = [
        s * (o - 1) + d * (k - 1) + 1 - 2 * p
        for o, k, p, s, d in zip(dy.shape[2:], w.shape[2:], pad, stride, dilation, strict=True)
    ]
    extra = [n - m for n, m in zip(x_shape[2:], least, strict=True)]
    # What of x no window reaches has a gradient of 0, as deconvolution's output_padding.
    return deconvolution(dy, w, None, pad, stride, dilation, group, extra)


# -- running one function ---------------------------------------------------------------------


def values(shape, dtype="f", seed=0):
    return np.random.default_rng((seed, *shape)).uniform(-1, 1, shape).astype(dtype)


def device(array):
    import cupy

    return cupy.asarray(array)


def blank(shape, dtype):
    return device(np.full(shape, np.nan, dtype))


def xp(precision="highest"):
    from distnn.context import Context

    backend = Context(["cudnn:float"], precision=precision).resolve()
    return backend.xp


def twin(function):
    from distnn.cuda.twin import implementation

    return implementation(function)


def last(x):
    """Channels to the end."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def close(found, wanted, dtype, terms):
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    scale = RTOL[dtype] * np.sqrt(terms) * max(np.abs(wanted).max(initial=0), 1)
    np.testing.assert_allclose(found.get().astype(np.float64), wanted, rtol=0, atol=scale)


Need = namedtuple("Need", "x w b")

# x, w, then the geometry.
CONFIGURATIONS = {
    "1-D": ((2, 3, 9), (4, 3, 3), {}),
    "1-D, everything": (
        (2, 4, 12), (6, 2, 3), {"pad": (2,), "stride": (3,), "dilation": (2,), "group": 2}),
    "2-D": ((2, 3, 6, 7), (4, 3, 3, 2), {}),
    "pad": ((2, 3, 5, 6), (4, 3, 3, 4), {"pad": (1, 2)}),
    "stride": ((2, 3, 8, 9), (4, 3, 3, 2), {"stride": (2, 3)}),
    "stride leaves pixels out": ((2, 3, 8, 8), (4, 3, 3, 3), {"stride": (3, 2), "pad": (0, 1)}),
    "stride longer than the kernel": ((2, 3, 9, 10), (4, 3, 2, 1), {"stride": (4, 3)}),
    "dilation": ((2, 3, 8, 9), (4, 3, 3, 2), {"dilation": (2, 3)}),
    "groups": ((2, 6, 5, 5), (4, 3, 3, 3), {"pad": (1, 1), "group": 2}),
    "odd groups": ((2, 9, 4, 4), (6, 3, 3, 3), {"pad": (1, 1), "group": 3}),
    "depthwise": ((2, 5, 6, 6), (5, 1, 3, 3), {"pad": (1, 1), "group": 5}),
    "depthwise, two filters each": ((2, 3, 5, 4), (6, 1, 2, 3), {"stride": (2, 1), "group": 3}),
    "everything": (
        (3, 4, 9, 8), (6, 2, 2, 3),
        {"pad": (1, 3), "stride": (2, 2), "dilation": (2, 1), "group": 2}),
    "1x1": ((2, 3, 4, 5), (4, 3, 1, 1), {}),
    "1x1 with groups": ((2, 4, 4, 5), (6, 2, 1, 1), {"group": 2}),
    "1x1 with stride": ((2, 3, 5, 6), (4, 3, 1, 1), {"stride": (2, 2)}),
    "1x1 with pad": ((2, 3, 3, 4), (4, 3, 1, 1), {"pad": (1, 1)}),
    "one channel": ((3, 1, 6, 6), (4, 1, 3, 3), {}),
    "one filter": ((3, 2, 6, 6), (1, 2, 3, 3), {}),
    "one channel, one filter": ((1, 1, 3, 3), (1, 1, 3, 3), {"pad": (1, 1)}),
    "one pixel": ((3, 4, 1, 1), (5, 4, 1, 1), {}),
    "one pixel in padding": ((3, 4, 1, 1), (5, 4, 3, 3), {"pad": (1, 1)}),
    "kernel as large as the map": ((3, 2, 4, 5), (3, 2, 4, 5), {}),
    "padding wider than the kernel": ((1, 2, 3, 3), (2, 2, 2, 2), {"pad": (3, 3)}),
    "windows in padding alone": ((1, 2, 2, 2), (3, 2, 2, 2), {"pad": (4, 4), "stride": (3, 3)}),
    "wide": ((2, 40, 7, 5), (37, 40, 3, 3), {"pad": (1, 1)}),
    "3-D": ((2, 2, 4, 5, 4), (3, 2, 2, 3, 2), {}),
    "3-D, everything": (
        (2, 4, 5, 6, 5), (4, 2, 2, 3, 2),
        {"pad": (1, 0, 1), "stride": (2, 1, 2), "dilation": (1, 2, 2), "group": 2}),
    "4-D": ((1, 2, 3, 4, 3, 4), (3, 2, 2, 3, 2, 2), {"pad": (1, 0, 1, 0)}),
}  # fmt: skip

ALL = pytest.mark.parametrize(
    ("x_shape", "w_shape", "options"), CONFIGURATIONS.values(), ids=CONFIGURATIONS
)


def geometry_of(w_shape, options):
    window = completed(
        len(w_shape) - 2, *(options.get(n, ()) for n in ("pad", "stride", "dilation"))
    )
    return Geometry(*map(tuple, window), options.get("group", 1))


def check(x_shape, w_shape, options, dtype, channel_last=False, bias=True, precision="highest"):
    """All functions of one convolution against the definition."""
    order = last if channel_last else np.asarray
    x, w = values(x_shape, dtype, 1), values(w_shape, dtype, 2)
    b = values(w_shape[:1], dtype, 3) if bias else None
    wide = [None if a is None else a.astype(np.float64) for a in (x, w, b)]
    y = convolution(*wide, **options)
    dy = values(y.shape, dtype, 4)
    geometry = geometry_of(w_shape, options)
    function = Convolution.of(geometry, channel_last)
    names = xp(precision)
    arrays = [None if a is None else device(order(a) if a.ndim > 1 else a) for a in (x, w, b)]
    taps = int(np.prod(w_shape[1:]))

    found = twin(function).forward(names, *arrays)
    close(found, order(y), dtype, taps)
    out = blank(order(y).shape, dtype)
    assert twin(function).forward(names, *arrays, out=out) is out
    assert out.get().tobytes() == found.get().tobytes()

    dx = data_gradient(dy.astype(np.float64), wide[1], x_shape, **options)
    dw = filter_gradient(dy.astype(np.float64), wide[0], w_shape[2:], **options)
    db = dy.astype(np.float64).sum(axis=(0, *range(2, dy.ndim)))
    outs = Need(blank(order(x).shape, dtype), blank(order(w).shape, dtype), blank(b.shape, dtype)
                if bias else None)  # fmt: skip
    dy_array = device(order(dy))
    twin(function).backward(names, Need(True, True, bias), dy_array, arrays[0], arrays[1], out=outs)
    dx_terms = taps * w_shape[0] // max(w_shape[1], 1)
    close(outs.x, order(dx), dtype, dx_terms)
    close(outs.w, order(dw), dtype, dy[:, 0].size if dy.size else 1)
    if bias:
        close(outs.b, db, dtype, dy[:, 0].size if dy.size else 1)

    # The functions that gradient rules call give the same bits as the fast path.
    transposed = Deconvolution.of(geometry, channel_last, tuple(x_shape[2:]))
    bits = twin(transposed).forward(names, dy_array, arrays[1]).get().tobytes()
    assert bits == outs.x.get().tobytes()
    correlation = FilterGradient.of(geometry, channel_last, tuple(w_shape[2:]))
    bits = twin(correlation).forward(names, dy_array, arrays[0]).get().tobytes()
    assert bits == outs.w.get().tobytes()
    added = values((x_shape[1],), dtype, 5)
    found = twin(transposed).forward(names, dy_array, arrays[1], device(added))
    shape = (-1, *[1] * (len(x_shape) - 2))
    close(found, order(dx + added.astype(np.float64).reshape(shape)), dtype, dx_terms)


# -- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channel_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("dtype", "efd")
@ALL
def test_convolution_and_its_gradients(x_shape, w_shape, options, dtype, channel_last, engine):
    check(x_shape, w_shape, options, dtype, channel_last)


@pytest.mark.parametrize("channel_last", [False, True], ids=["first", "last"])
@ALL
def test_without_bias(x_shape, w_shape, options, channel_last, engine):
    check(x_shape, w_shape, options, "f", channel_last, bias=False)


@pytest.fixture
def small_parts(patches, monkeypatch):
    """A matrix of patches holds one or two images."""
    from distnn.cuda import convolution, im2col

    monkeypatch.setattr(im2col, "_PATCH_BYTES", 4096)
    convolution._patches.cache_clear()
    yield
    convolution._patches.cache_clear()


@pytest.mark.parametrize("dtype", "efd")
@pytest.mark.parametrize("name", ["2-D", "everything", "groups", "1x1", "3-D, everything"])
def test_images_in_several_parts(name, dtype, small_parts):
    x_shape, *rest = CONFIGURATIONS[name]
    check((7, *x_shape[1:]), *rest, dtype)


def test_filter_gradients_of_parts_add_up_in_float32(small_parts):
    # 2048 + 1 is 2048 in half precision: parts that are rounded one by one lose the ones.
    dy = np.ones((256, 1, 4, 4), np.float16)
    x = np.concatenate([np.full((128, 1, 4, 4), 1, "e"), np.full((128, 1, 4, 4), 1 / 16, "e")])
    function = FilterGradient.of(Geometry((1, 1), (1, 1), (1, 1), 1), False, (3, 3))
    found = twin(function).forward(xp(), device(dy), device(x)).get()
    assert found[0, 0, 1, 1] == 128 * 16 + 128


@pytest.mark.parametrize("name", ["everything", "1-D, everything", "3-D, everything"])
def test_indices_of_64_bits(name, patches, monkeypatch):
    from distnn.cuda import im2col

    monkeypatch.setattr(im2col, "index_dtype", lambda *sizes: np.dtype(np.int64))
    check(*CONFIGURATIONS[name], "f")


def test_kernels_have_no_races(patches, emulated):
    from gpu_emulator import settings

    with settings.using(check_races=True):
        check(*CONFIGURATIONS["everything"], "e")


def test_against_pytorch(engine):
    torch = pytest.importorskip("torch")
    x, w, b = values((4, 16, 23, 17)), values((24, 4, 5, 3), seed=1), values((24,), seed=2)
    tensors = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in (x, w, b)]
    window = {"stride": (2, 1), "padding": (3, 2), "dilation": (1, 2), "groups": 4}
    y = torch.nn.functional.conv2d(*tensors, **window)
    dy = values(tuple(y.shape), seed=3)
    y.backward(torch.tensor(dy.astype(np.float64)))
    own = [nn.Variable.from_numpy_array(a, need_grad=True) for a in (x, w, b)]
    z = F.convolution(*own, pad=(3, 2), stride=(2, 1), dilation=(1, 2), group=4)
    z.forward()
    for v in own:
        v.grad.zero()
    z.backward(dy)
    np.testing.assert_allclose(z.d, y.detach().numpy(), rtol=1e-4, atol=1e-5)
    for variable, tensor in zip(own, tensors, strict=True):
        wanted = tensor.grad.numpy()
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(variable.g, wanted, rtol=0, atol=1e-6 * scale)


def test_second_derivatives(engine):
    """By nn.grad, which runs the gradient rules: as on the CPU."""
    results = []
    for context in ("cudnn:double", "cpu:double"):
        with nn.context_scope(nn.Context([context])):
            x = nn.Variable.from_numpy_array(values((2, 3, 6, 5), "d", 1), need_grad=True)
            w = nn.Variable.from_numpy_array(values((4, 3, 3, 2), "d", 2), need_grad=True)
            y = F.convolution(x, w, pad=(1, 0), stride=(2, 1))
            first = nn.grad([F.sum(y * y * y)], [x, w])
            second = nn.grad([F.sum(first[0] * first[0]) + F.sum(first[1] * first[1])], [x, w])
            nn.forward_all(second)
            results.append([g.d.copy() for g in second])
    for gpu, cpu in zip(*results, strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("channel_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize(
    ("x_shape", "w_shape"),
    [
        ((0, 3, 6, 6), (4, 3, 3, 3)),
        ((2, 0, 6, 6), (4, 0, 3, 3)),
        ((2, 3, 6, 6), (0, 3, 3, 3)),
    ],
    ids=["no images", "no channels", "no filters"],
)
def test_nothing_to_add_up(x_shape, w_shape, channel_last, engine):
    order = last if channel_last else np.asarray
    x, w, b = values(x_shape), values(w_shape, seed=1), values(w_shape[:1], seed=2)
    function = Convolution.of(Geometry((0, 0), (1, 1), (1, 1), 1), channel_last)
    found = twin(function).forward(xp(), device(order(x)), device(order(w)), device(b)).get()
    y = np.zeros((x_shape[0], w_shape[0], 4, 4)) + b.reshape(-1, 1, 1)
    np.testing.assert_array_equal(found, order(y))
    outs = Need(blank(order(x).shape, "f"), blank(order(w).shape, "f"), blank(b.shape, "f"))
    arrays = [device(order(a)) for a in (np.ones(y.shape, np.float32), x, w)]
    twin(function).backward(xp(), Need(True, True, True), *arrays, out=outs)
    assert not outs.x.get().any()
    assert not outs.w.get().any()
    np.testing.assert_array_equal(outs.b.get(), np.full(b.shape, 16 * x_shape[0]))


# -- what cuDNN is asked for ------------------------------------------------------------------


def run_forward(dtype="f", precision="highest", x_shape=(2, 3, 6, 6), channel_last=False):
    x, w = values(x_shape, dtype), values((4, 3, 3, 3), dtype, 1)
    if channel_last:
        x, w = last(x), last(w)
    function = Convolution.of(Geometry((1, 1), (1, 1), (1, 1), 1), channel_last)
    return twin(function).forward(xp(precision), device(x), device(w), None)


@pytest.mark.parametrize(
    ("dtype", "precision", "plan"),
    [
        ("f", "highest", "eng3_plain"),
        ("f", "tf32", "eng2_tensor_core"),
        ("e", "highest", "eng2_tensor_core"),
        ("d", "tf32", "eng2_tensor_core"),  # those of float64 are as exact as any
    ],
)
def test_plans_keep_the_precision_and_the_bits(dtype, precision, plan, cudnn):
    run_forward(dtype, precision)
    assert [run[1] for run in cudnn.runs] == [plan]


@pytest.mark.parametrize(
    ("dtype", "precision", "channel_last", "strides", "swaps"),
    [
        ("f", "highest", False, [108, 36, 6, 1], 0),
        ("f", "highest", True, [108, 1, 18, 3], 0),
        ("f", "tf32", False, [108, 1, 18, 3], 3),
        ("f", "tf32", True, [108, 1, 18, 3], 0),
        ("e", "highest", False, [108, 1, 18, 3], 3),
        ("e", "highest", True, [108, 1, 18, 3], 0),
        ("d", "highest", False, [108, 36, 6, 1], 0),
    ],
)
def test_tensor_cores_get_channels_last(
    dtype, precision, channel_last, strides, swaps, cudnn, emulated
):
    run_forward(dtype, precision, channel_last=channel_last)
    assert cudnn.graphs[0].operands[0].dim == [2, 3, 6, 6]
    assert cudnn.graphs[0].operands[0].stride == strides
    assert emulated.kernels() == ["swap_axes"] * swaps


def test_both_gradients_share_what_is_converted(cudnn, emulated):
    x, w, dy = values((2, 3, 6, 6)), values((4, 3, 3, 3)), values((2, 4, 6, 6))
    function = Convolution.of(Geometry((1, 1), (1, 1), (1, 1), 1), False)
    outs = Need(blank(x.shape, "f"), blank(w.shape, "f"), None)
    arrays = [device(a) for a in (dy, x, w)]
    emulated.clear()
    twin(function).backward(xp("tf32"), Need(True, True, False), *arrays, out=outs)
    # dy once, x, w, and the two results.
    assert emulated.kernels() == ["swap_axes"] * 5


def test_one_pixel_or_one_channel_needs_no_conversion(cudnn, emulated):
    for x_shape, w_shape in (((4, 7, 1, 1), (5, 7, 1, 1)), ((4, 1, 6, 6), (1, 1, 3, 3))):
        function = Convolution.of(Geometry((0, 0), (1, 1), (1, 1), 1), False)
        emulated.clear()
        twin(function).forward(xp("tf32"), device(values(x_shape)), device(values(w_shape)))
        assert emulated.kernels() == []


def test_a_bias_is_part_of_the_graph(cudnn, emulated):
    y = PF.convolution(nn.Variable.from_numpy_array(values((2, 3, 6, 6))), 4, (3, 3))
    y.forward()
    assert cudnn.graphs[0].bias_tensor.dim == [1, 4, 1, 1]
    assert "add_to_planes" not in emulated.kernels()


def test_plans_are_made_once_per_configuration(cudnn):
    for _ in range(3):
        run_forward()
    assert len(cudnn.graphs) == 1
    run_forward(x_shape=(2, 3, 7, 6))
    run_forward("d")
    run_forward(precision="tf32")
    run_forward(channel_last=True)
    assert len(cudnn.graphs) == 5
    assert len(cudnn.runs) == 7
    # For one operation one plan is built: the first that may run.
    assert cudnn.graphs[0].built == {1, 3}  # the first wants too much workspace


def test_workspace_goes_back(cudnn):
    import cupy

    run_forward()
    used = cupy.get_default_memory_pool().used_bytes()
    run_forward()
    assert cupy.get_default_memory_pool().used_bytes() == used


def test_work_is_queued_on_the_current_stream(cudnn):
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    run_forward()
    with stream:
        run_forward()
    run_forward()
    assert [run[2] for run in cudnn.runs] == [0, stream.ptr, 0]


def test_each_thread_has_a_handle(cudnn):
    run_forward()
    before = len(cudnn.streams)
    thread = threading.Thread(target=run_forward)
    thread.start()
    thread.join()
    run_forward()
    assert len(cudnn.streams) == before + 1


def test_arrays_at_odd_addresses_are_copied(cudnn):
    import cupy

    memory = cupy.zeros(2 * 3 * 6 * 6 + 1, np.float32)
    x = memory[1:].reshape(2, 3, 6, 6)
    x[...] = device(values((2, 3, 6, 6)))
    w = values((4, 3, 3, 3), seed=1)
    out = cupy.zeros(2 * 4 * 4 * 4 + 1, np.float32)[1:].reshape(2, 4, 4, 4)
    function = Convolution.of(Geometry((0, 0), (1, 1), (1, 1), 1), False)
    twin(function).forward(xp(), x, device(w), None, out=out)
    close(out, convolution(x.get().astype(np.float64), w.astype(np.float64)), "f", 27)


@pytest.mark.parametrize("operation", ["fprop", "dgrad", "wgrad"])
def test_what_cudnn_lacks_is_computed_with_patches(operation, cudnn, caplog):
    cudnn.unsupported.add(operation)
    with caplog.at_level(logging.WARNING, "distnn"):
        check(*CONFIGURATIONS["everything"], "f")
        check(*CONFIGURATIONS["everything"], "f")
    kinds = {"fprop": "forward", "dgrad": "data gradient", "wgrad": "filter gradient"}
    messages = [m for m in caplog.messages if "cuDNN has no engine" in m]
    # Once for each operation, forward with bias being one of its own.
    assert len(messages) == (2 if operation == "fprop" else 1)
    assert all(f"a convolution's {kinds[operation]}" in m for m in messages)
    assert "float32, channels first, x (3, 4, 9, 8), w (6, 2, 2, 3)" in messages[0]
    assert "No valid engine configs" in messages[0]
    assert {run[0] for run in cudnn.runs} == {"fprop", "dgrad", "wgrad"} - {operation}


def test_four_spatial_axes_are_never_cudnns(cudnn):
    check(*CONFIGURATIONS["4-D"], "f")
    assert not cudnn.graphs


def test_without_cudnn_one_warning_says_what_to_install(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "cudnn", None)
    monkeypatch.delenv("DISTNN_CUDNN", raising=False)
    forget()
    with caplog.at_level(logging.INFO, "distnn"):
        run_forward()
        run_forward()
    forget()
    assert len([m for m in caplog.messages if "pip install 'distnn[cuda13]'" in m]) == 1


def test_cudnn_can_be_switched_off(cudnn, monkeypatch):
    monkeypatch.setenv("DISTNN_CUDNN", "0")
    run_forward()
    assert not cudnn.graphs


# -- autotuning -------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Sets how long each plan takes."""
    import cupy

    def set_times(*times):
        left = list(times)
        monkeypatch.setattr(cupy.cuda, "get_elapsed_time", lambda start, stop: left.pop(0))
        return left

    return set_times


def test_the_fastest_plan_is_chosen_once(cudnn, clock):
    nn.set_autotune(True)
    left = clock(3.0, 1.0, 2.0)  # eng2, eng3 and eng4: the others are left out
    found = run_forward("e")
    assert cudnn.runs[-1][1] == "eng3_plain"
    assert left == []
    runs = len(cudnn.runs)
    assert found.get().tobytes() == run_forward("e").get().tobytes()
    assert len(cudnn.runs) == runs + 1


def test_choices_can_be_handed_on(cudnn, clock):
    nn.set_autotune(True)
    clock(2.0, 1.0)  # eng3 and eng4
    run_forward()
    made = nn.get_autotune_choices()
    ((configuration, plan),) = made.items()
    assert plan == "eng4_plain"
    assert configuration == (
        "cuDNN 92800, Emulated GPU: forward, float32, channels first, x (2, 3, 6, 6), "
        "w (4, 3, 3, 3), pad (1, 1), stride (1, 1), dilation (1, 1), group 1"
    )
    forget()
    run_forward()  # another process finds it on disk
    assert cudnn.runs[-1][1] == "eng4_plain"
    forget()
    nn.set_autotune(False)
    nn.set_autotune_choices(made)
    run_forward()
    assert cudnn.runs[-1][1] == "eng4_plain"
    # Another version of cuDNN has other plans: its own recommendation is taken.
    forget()
    nn.set_autotune_choices({configuration: "eng99"})
    run_forward()
    assert cudnn.runs[-1][1] == "eng3_plain"


def test_plans_without_memory_for_their_workspace_are_passed_over(cudnn, clock, monkeypatch):
    import cupy

    nn.set_autotune(True)
    clock(1.0)
    monkeypatch.setattr(
        cudnn,
        "PLANS",
        [("eng0", set(), 2**29), ("eng1", set(), 0)],
    )
    pool = cupy.get_default_memory_pool()
    pool.set_limit(size=pool.total_bytes() + 2**20)
    try:
        run_forward()
    finally:
        pool.set_limit(size=0)
    assert cudnn.runs[-1][1] == "eng1"
