"""Products by tile registers, where the processor has them."""

from __future__ import annotations

import numpy as np
import pytest

import distnn as nn
from distnn.threads import parallel_for

pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")

from distnn.cpu import amx

needs_tiles = pytest.mark.skipif(not amx.available(), reason="needs a processor with AMX")


def bfloat16(a):
    """float32 numbers rounded to bfloat16, by ml_dtypes."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with np.errstate(invalid="ignore"):  # NaN
        return a.astype(ml_dtypes.bfloat16)


def up(length, grain):
    return -(-length // grain) * grain


def left(a):
    rows, columns = up(a.shape[0], amx.PAIR), up(a.shape[1], amx.DEPTH)
    out = np.zeros((columns // amx.DEPTH, rows, amx.DEPTH), np.uint16)
    amx.to_left(a.view(np.uint32), out.reshape(-1), rows * amx.DEPTH)
    return out


def right(b, depth):
    out = np.empty((up(b.shape[1], amx.PAIR) // 16, depth * 16, 16, 2), np.uint16)
    amx.to_right(b.view(np.uint32), out.reshape(-1), depth)
    return out


def product(a, b):
    x = left(a)
    depth, rows, _ = x.shape
    y = right(b, depth)
    c = np.full((len(y), rows, 16), np.nan, np.float32)
    shapes, flat = amx.tile_shapes(), c.reshape(-1)
    parallel_for(
        lambda i, j: amx.multiply(
            shapes, x.reshape(-1), x[0].size, y.reshape(-1), depth, flat, c[0].size, len(y), i, j
        ),
        rows // amx.PAIR,
        1,
    )
    return c.transpose(1, 0, 2).reshape(rows, -1)[: len(a), : b.shape[1]]


def test_numbers_are_rounded_as_bfloat16_are():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, (64, 64), np.uint32)
    bits[0, :8] = [0, 0x80000000, 0x3F808000, 0x3F818000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 1]
    a = bits.view(np.float32)
    found = left(a)[:, :64].transpose(1, 0, 2).reshape(64, 64)
    expected = bfloat16(a).view(np.uint16)
    number = ~np.isnan(a)
    np.testing.assert_array_equal(found[number], expected[number])
    assert np.isnan(found[~number].view(bfloat16(a).dtype).astype(np.float32)).all()


@needs_tiles
@pytest.mark.parametrize(("rows", "depth", "columns"), [(32, 32, 32), (1, 1, 1), (100, 70, 45)])
def test_products_agree_with_those_of_rounded_numbers_in_float64(rows, depth, columns):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((rows, depth), np.float32)
    b = rng.standard_normal((depth, columns), np.float32)
    exact = bfloat16(a).astype(np.float64) @ bfloat16(b).astype(np.float64)
    np.testing.assert_allclose(product(a, b), exact, rtol=1e-5, atol=1e-5)


@needs_tiles
def test_the_number_of_threads_changes_no_bit():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 256, 256), np.float32)
    before, found = nn.get_num_threads(), []
    for threads in (1, 2, 4):
        nn.set_num_threads(threads)
        found.append(product(a, b))
    nn.set_num_threads(before)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
