"""Compiled kernels where memory, shapes or processes are unusual: the results are NumPy's."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F
from distnn.cpu import twin
from distnn.ndarray import NdArray

pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")

from distnn.cpu import channels, elementwise
from distnn.cpu.depthwise import Depthwise, correlate
from distnn.formula import Formula
from distnn.functions.im2col import Geometry
from distnn.namespace import NumpyNamespace


@pytest.fixture
def kernels(monkeypatch):
    """Chooses kernels; compiled ones take arrays of any size."""
    monkeypatch.setattr(twin, "SMALLEST", 1)
    before = nn.get_cpu_kernels()
    yield nn.set_cpu_kernels
    nn.set_cpu_kernels(before)


def normalized(x, beta, gamma):
    running = [nn.Variable((1, x.shape[1], 1, 1)) for _ in range(2)]
    return F.tanh(F.batch_normalization(x, beta, gamma, *running))


def convolved(**options):
    return lambda x, w: F.convolution(x, w, **options)


CHANNEL = (1, 16, 1, 1)
# Functions, the shape of x behind the batch, and the shapes of the others; maps can be one pixel.
ON_MAPS = {
    "3x3": (convolved(pad=(1, 1)), [(16, 16, 3, 3)]),
    "5x5, stride 2": (convolved(pad=(2, 2), stride=(2, 2)), [(16, 16, 5, 5)]),
    "1x1": (convolved(), [(32, 16, 1, 1)]),
    "depthwise": (convolved(pad=(1, 1), group=16), [(16, 1, 3, 3)]),
    "batch normalization": (normalized, [CHANNEL, CHANNEL]),
    "average pooling": (lambda x: F.average_pooling(x, (3, 3), (1, 1), pad=(1, 1)), []),
    "max pooling": (lambda x: F.max_pooling(x, (3, 3), (2, 2), pad=(1, 1)), []),
    "gelu": (F.gelu, []),
}
ON_ROWS = {
    "affine": (F.affine, [(16, 32), (32,)]),
    "softmax": (F.softmax, []),
    "layer normalization": (F.layer_normalization, [(1, 16), (1, 16)]),
}
SHAPES = {
    "no images": [(ON_MAPS, (0, 16, 6, 6)), (ON_ROWS, (0, 16))],
    "one pixel": [(ON_MAPS, (3, 16, 1, 1)), (ON_ROWS, (1, 16))],
    "one image": [(ON_MAPS, (1, 16, 7, 5)), (ON_ROWS, (65, 16))],
}
CASES = [
    pytest.param(function, x, shapes, id=f"{name}, {kind}")
    for kind, groups in SHAPES.items()
    for table, x in groups
    for name, (function, shapes) in table.items()
    if (name, kind) != ("batch normalization", "no images")  # an error, which others test
]


def results(function, arrays):
    """The result and all gradients of a function of these arrays, as they lie in memory."""
    inputs = []
    for array in arrays:
        v = nn.Variable(array.shape, need_grad=True)
        v.data = NdArray.from_numpy_array(array)
        inputs.append(v)
    y = function(*inputs)
    y.forward()
    y.backward(np.cos(np.arange(y.size, dtype=np.float32)).reshape(y.shape))
    return [y.d.copy(), *(v.g.copy() for v in inputs)]


def arrays_of(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize(("function", "x", "shapes"), CASES)
def test_batches_of_nothing_and_maps_of_one_pixel(kernels, function, x, shapes):
    arrays = arrays_of(x, *shapes)
    found = {}
    for name in ("numpy", "numba"):
        kernels(name)
        found[name] = results(function, arrays)
    for ours, expected in zip(found["numba"], found["numpy"], strict=True):
        assert ours.shape == expected.shape
        np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-5)


def unaligned(array):
    """The values, two bytes beside where floats should begin."""
    memory = np.zeros(array.nbytes + 2, np.uint8)
    odd = memory[2:].view(array.dtype).reshape(array.shape)
    odd[...] = array
    assert not odd.flags.aligned
    return odd


def strided(array):
    """The values, each beside one that is not meant."""
    memory = np.full((*array.shape, 2), np.nan, array.dtype)
    memory[..., 0] = array
    return memory[..., 0]


@pytest.mark.parametrize("laid_out", [unaligned, strided, np.asfortranarray])
@pytest.mark.parametrize(
    ("function", "x", "shapes"), [case for case in CASES if "one image" in case.id]
)
def test_arrays_that_lie_in_memory_in_other_ways(kernels, function, x, shapes, laid_out):
    kernels("numba")
    arrays = arrays_of(x, *shapes)
    expected = results(function, arrays)
    for ours, usual in zip(results(function, [*map(laid_out, arrays)]), expected, strict=True):
        assert ours.tobytes() == usual.tobytes()


# -- more than 2^31 elements: memory that nobody has touched costs nothing -------------------------

HUGE = 2**31


@pytest.fixture(scope="module")
def huge():
    """Two arrays of a few more than 2^31 zeros, which Linux does not give before they are used."""
    try:
        return [np.zeros(HUGE + 4096, np.float32) for _ in range(2)]
    except MemoryError:
        pytest.skip("this system promises no 16 GB")


def test_formulas_behind_2_31_elements(huge):
    x, y = huge
    x[-64:] = np.linspace(-2, 2, 64)
    formula, kinds = Formula("tanh(x)", ("x",), ()), (elementwise.FULL,)
    loop = elementwise._formula_loop(formula, x.dtype, kinds, 1, 1)
    loop.kernel(x.size - 64, x.size, y, x)
    np.testing.assert_allclose(y[-64:], np.tanh(x[-64:]), rtol=1e-6)
    assert y[x.size - 65] == 0
    x[-64:] = y[-64:] = 0


def test_depthwise_convolution_of_an_image_behind_2_31_pixels(huge):
    x, y = (a[: (HUGE // 4096 + 1) * 4096].reshape(-1, 1, 64, 64) for a in huge)
    rng = np.random.default_rng(0)
    x[-1] = rng.standard_normal((1, 64, 64))
    w = rng.standard_normal((1, 1, 3, 3)).astype(np.float32)
    geometry = Geometry((1, 1), (1, 1), (1, 1), 1)
    whole = Depthwise(NumpyNamespace(), geometry, x.shape, w.shape)
    one = Depthwise(NumpyNamespace(), geometry, (1, 1, 64, 64), w.shape)
    expected = np.empty((1, 1, 64, 64), np.float32)
    one.forward(x[-1:], w, None, expected)
    s = whole.sizes
    bias = np.zeros(1, np.float32)
    correlate(
        x.reshape(-1), s.x, w.reshape(1, -1), s.taps, bias, s.y, y.reshape(-1), len(x) - 1, len(x)
    )
    assert y[-1].tobytes() == expected.tobytes()
    x[-1] = y[-1] = 0


def test_sums_of_channels_behind_2_31_elements(huge):
    x = huge[0][: (HUGE // 4096 + 1) * 4096].reshape(-1, 1, 4096)
    x[-1] = 1
    assert channels.CompiledChannels(x[-1:].shape).total(x[-1:]) == 4096
    x[-1] = 0


# -- processes ------------------------------------------------------------------------------------

FORK = """
import os
import numpy as np, distnn as nn, distnn.functions as F
nn.set_cpu_kernels("numba")
nn.set_num_threads(3)
x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(64, 16, 32, 32), need_grad=True)
w = nn.Variable.from_numpy_array(np.random.RandomState(1).randn(16, 16, 3, 3), need_grad=True)
def results():
    x.grad.zero()
    w.grad.zero()
    y = F.tanh(F.convolution(x, w, pad=(1, 1)))
    y.forward()
    y.backward(1)
    return [a.tobytes() for a in (y.d, x.g, w.g)]
before = results()
child = os.fork()
same = results() == before
if child == 0:
    os._exit(0 if same else 1)
assert same
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""

PINNED = """
import os, threading
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np, distnn as nn, distnn.functions as F
nn.set_cpu_kernels("numba")
assert nn.get_num_threads() == 1
y = F.tanh(nn.Variable.from_numpy_array(np.ones(2_000_000, np.float32)))
y.forward()
assert threading.active_count() == 1, threading.enumerate()
nn.set_num_threads(2)  # who asks for more gets them
y.forward()
assert threading.active_count() == 2
"""


def run(code, **environment):
    unwanted = ("DISTNN_NUM_THREADS", "OMP_NUM_THREADS")
    kept = {k: v for k, v in os.environ.items() if k not in unwanted}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks processes")
def test_a_process_that_forks_after_threads_have_worked():
    run(FORK)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux's affinity")
def test_a_process_that_is_bound_to_a_core_starts_no_threads():
    run(PINNED)
