"""Pooling on a GPU: each kernel gives what the function itself gives on NumPy arrays.

That the functions agree with the definition is tested by the table (test_functions.py).
"""

from __future__ import annotations

import numpy as np
import pytest

from distnn.errors import ShapeError
from distnn.function import Spec
from distnn.functions.pooling import (
    LinearPooling,
    LinearUnpooling,
    MaxPooling,
    MaxUnpooling,
    PickFromWindows,
)
from distnn.namespace import NumpyNamespace

pytestmark = pytest.mark.usefixtures("gpu")

# (shape of x, kernel, stride, pad, ignore_border, channel_last)
LAYOUTS = {
    "1-D": ((2, 3, 9), (2,), (2,), (0,), True, False),
    "2-D": ((2, 3, 6, 8), (2, 2), (2, 2), (0, 0), True, False),
    "overlap": ((2, 3, 7, 8), (3, 3), (1, 2), (0, 0), True, False),
    "apart": ((3, 7, 8), (2, 1), (3, 3), (0, 0), True, False),
    "pad": ((2, 2, 5, 6), (3, 2), (2, 2), (1, 1), True, False),
    "border": ((2, 2, 6, 8), (3, 3), (2, 2), (1, 1), False, False),
    "channel_last": ((2, 6, 8, 3), (3, 3), (2, 2), (1, 1), False, True),
    "3-D": ((1, 2, 4, 5, 3), (2, 3, 3), (2, 1, 2), (1, 2, 1), True, False),
    "4-D": ((2, 3, 4, 3, 5), (2, 2, 2, 3), (1, 2, 1, 2), (1, 0, 0, 1), True, False),
    "no batch": ((6, 4), (3, 2), (3, 2), (0, 0), True, False),
    "wider than the map": ((2, 1, 2), (5, 3), (1, 1), (2, 1), True, False),
    "many": ((3, 5, 33, 17), (3, 3), (2, 2), (1, 1), True, False),
    "empty": ((0, 3, 6, 6), (2, 2), (2, 2), (0, 0), True, False),
}


def functions(layout):
    """(function, shape of its x) for all functions whose windows fit."""
    x_shape, *windows = layout
    pooling = MaxPooling.of(*windows)
    y_shape = pooling.result_shape(x_shape)
    yield pooling, x_shape
    yield MaxUnpooling.of(*windows, x_shape), y_shape
    yield PickFromWindows.of(*windows), x_shape
    for average, including_pad in ((False, True), (True, True), (True, False)):
        linear = LinearPooling.of(*windows, average, including_pad)
        try:
            linear.setup(Spec(x_shape, np.dtype(np.float64)))
        except ShapeError:  # a window has nothing but padding
            continue
        yield linear, x_shape
        yield LinearUnpooling.of(*windows, average, including_pad, x_shape), y_shape


def inputs(function, shape, char, taps=np.int32):
    """Whole numbers, many of them equal: their sums are exact in float16 as well."""
    rng = np.random.RandomState(0)
    x = rng.randint(-8, 9, shape).astype(char)
    if not function.indices:
        return [x]
    # Also numbers of taps in the padding, and of none.
    results = function.result_shape(getattr(function, "x_shape", shape))
    return [x, rng.randint(-1, np.prod(function.kernel) + 1, results).astype(taps)]


def run(function, arrays):
    """The twin's results as NumPy arrays; the same in its own memory and in what it is given."""
    import cupy

    from distnn.cuda.twin import implementation

    twin = implementation(function)
    arrays = [cupy.asarray(a) for a in arrays]
    own = as_tuple(twin.forward(cupy, *arrays))
    given = tuple(cupy.full(a.shape, 77, a.dtype) for a in own)
    returned = as_tuple(twin.forward(cupy, *arrays, out=given if len(given) > 1 else given[0]))
    assert all(a is b for a, b in zip(returned, given, strict=True))
    for a, b in zip(own, given, strict=True):
        np.testing.assert_array_equal(a.get(), b.get())
    return [a.get() for a in own]


def as_tuple(results):
    return results if isinstance(results, tuple) else (results,)


def expected(function, arrays):
    return as_tuple(function.forward(NumpyNamespace(), *arrays))


@pytest.mark.parametrize("char", "efd")
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_kernels_agree_with_the_functions(layout, char):
    error = {"e": 1e-3, "f": 3e-7, "d": 1e-15}[char]
    for function, shape in functions(layout):
        for taps in (np.int32, np.int64):
            arrays = inputs(function, shape, char, taps)
            wide = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
            for found, exact in zip(run(function, arrays), expected(function, wide), strict=True):
                assert found.dtype == (char if exact.dtype.kind == "f" else exact.dtype)
                assert found.shape == exact.shape
                np.testing.assert_allclose(found, exact, rtol=error, atol=error)


@pytest.mark.parametrize("layout", ["overlap", "border", "channel_last", "3-D"])
def test_float32_results_have_the_bits_of_the_cpu(layout):
    rng = np.random.RandomState(1)
    for function, shape in functions(LAYOUTS[layout]):
        arrays = inputs(function, shape, "f")
        arrays[0] = rng.standard_normal(shape).astype(np.float32)
        for found, cpu in zip(run(function, arrays), expected(function, arrays), strict=True):
            np.testing.assert_array_equal(found, cpu)


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_windows_of_many_kinds_agree_with_the_functions(index, monkeypatch):
    """Random lengths, kernels, strides and pads; elements counted in int32, and in int64."""
    import cupy

    from distnn.cuda import pooling

    monkeypatch.setattr(pooling, "index_dtype", lambda *sizes: np.dtype(index))
    rng = np.random.RandomState(2)
    done = 0
    for trial in range(60):
        axes = rng.randint(1, 4)
        lengths, kernel, stride = (
            tuple(map(int, rng.randint(1, most, axes))) for most in (7, 4, 4)
        )
        pad = tuple(int(rng.randint(0, k)) for k in kernel)
        channel_last = trial % 3 == 0
        shape = (2, *lengths, 3) if channel_last else (2, 3, *lengths)
        layout = (shape, kernel, stride, pad, trial % 2 == 0, channel_last)
        try:
            MaxPooling.of(*layout[1:]).setup(Spec(shape, np.dtype(np.float64)))
        except ShapeError:
            continue
        done += 1
        for function, x_shape in functions(layout):
            arrays = inputs(function, x_shape, "d")
            twin = getattr(pooling, type(function).__name__)(function)
            found = twin.forward(cupy, *map(cupy.asarray, arrays))
            for a, exact in zip(as_tuple(found), expected(function, arrays), strict=True):
                np.testing.assert_array_equal(a.get(), exact, f"{function}")
    assert done > 30


def test_what_is_no_number_is_the_largest_and_padding_never_is():
    x = np.array([-1, -np.inf, -np.inf, -np.inf, np.nan, 3, np.nan, 7], np.float32)
    function = MaxPooling.of((2,), (1,), (1,), True, False)
    y, index = run(function, [x])
    cpu_y, cpu_index = expected(function, [x])
    np.testing.assert_array_equal(y, cpu_y)
    np.testing.assert_array_equal(index, cpu_index)
    np.testing.assert_array_equal(np.isnan(y), [0, 0, 0, 0, 1, 1, 1, 1, 0])


def test_arrays_may_be_strided():
    import cupy

    from distnn.cuda.twin import implementation

    x = np.random.RandomState(3).uniform(size=(8, 6)).astype(np.float32)
    for function, _ in functions(((6, 8), (2, 2), (2, 2), (0, 0), True, False)):
        if not function.indices and not hasattr(function, "x_shape"):
            found = implementation(function).forward(cupy, cupy.asarray(x).T)
            for a, e in zip(as_tuple(found), expected(function, [x.T]), strict=True):
                np.testing.assert_array_equal(a.get(), e)
