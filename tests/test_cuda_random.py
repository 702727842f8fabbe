"""Random numbers and dropout on a GPU have the bits of the CPU."""

from __future__ import annotations

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F
from distnn.functions.dropout import Dropout
from distnn.random import Draw

pytestmark = pytest.mark.usefixtures("gpu")

DRAWS = [Draw(0, 0, 0), Draw(313, 2, 5), Draw(2**64 - 1, 2**63, 2**64 - 1)]
SIZES = [0, 1, 7, 8, 9, 2047, 5000]


def on_device(draw):
    from distnn.cuda.random import DeviceDraw

    return DeviceDraw(*draw)


@pytest.mark.parametrize("draw", DRAWS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_words_are_those_of_the_cpu(draw, size):
    found = on_device(draw).words(size)
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found.get(), draw.words(size))


@pytest.mark.parametrize("char", "efd")
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 5, 7)])
def test_uniform_numbers_are_those_of_the_cpu(char, shape):
    found = on_device(DRAWS[1]).uniform(shape, np.dtype(char))
    expected = DRAWS[1].uniform(shape, np.dtype(char))
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(found.get(), expected)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_bernoulli_numbers_are_those_of_the_cpu(p):
    found = on_device(DRAWS[1]).bernoulli(p, (30, 50)).get()
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, DRAWS[1].bernoulli(p, (30, 50)))
    assert p - 0.05 < found.mean() < p + 0.05


def drawn(size, char):
    values = np.random.RandomState(0).uniform(-3, 3, size).astype(char)
    values[:4] = np.array([np.nan, np.inf, -np.inf, -0.0])[: len(values)]
    return values


@pytest.mark.parametrize("char", "efd")
@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("offset", [0, 1])
def test_dropout_has_the_bits_of_the_cpu(char, size, offset):
    """Also where the array does not begin at a multiple of 16 bytes, and for what is no number."""
    import cupy

    from distnn.cuda.twin import implementation

    draw, p, function = DRAWS[1], 0.4, Dropout.of(-1)
    x, dy = drawn(size, char), drawn(size, char)[::-1].copy()
    with np.errstate(invalid="ignore"):
        y, mask = function.forward(np, x, p=p, random=draw)
        dx = function.grad_x(np, dy, mask, p)
    memory = cupy.zeros(size + offset, char)
    memory[offset:] = cupy.asarray(x)
    twin = implementation(function)
    found_y, found_mask = twin.forward(cupy, memory[offset:], p=p, random=on_device(draw))
    np.testing.assert_array_equal(found_mask.get(), mask)
    same_bits(found_y.get(), y)
    inputs = function.declaration.per_input([cupy.empty(size, char)])
    twin.backward(cupy, (True,), cupy.asarray(dy), found_mask, p, out=inputs)
    same_bits(inputs.x.get(), dx)


def same_bits(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(found[numbers]), np.signbit(expected[numbers]))


@pytest.mark.parametrize("seed", [-1, 5])
def test_a_network_drops_the_same_elements_as_on_the_cpu(seed):
    values = np.random.RandomState(1).uniform(1, 2, (17, 9)).astype(np.float32)

    def computed(backend):
        with nn.context_scope(nn.Context([f"{backend}:float"])):
            nn.seed(11)
            x = nn.Variable.from_numpy_array(values, need_grad=True)
            loss = F.sum(F.dropout(F.dropout(x, 0.3, seed), 0.6))
            loss.forward()
            loss.backward()
            return x.g.copy()

    expected = computed("cpu")
    assert 0.5 < np.mean(expected == 0) < 0.9
    np.testing.assert_array_equal(computed("cudnn"), expected)
