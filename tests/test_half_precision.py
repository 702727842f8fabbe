"""Collectives of float16 and bfloat16: added in float32, rounded once. bfloat16 is ml_dtypes'."""

from __future__ import annotations

import numpy as np
import pytest
from ranks import TRANSPORTS, connected, on_ranks

import distnn as nn
import distnn.communicators as C
from distnn.communicators import half_precision
from distnn.errors import DtypeError

try:
    from ml_dtypes import bfloat16
except ImportError:
    bfloat16 = None

everywhere = pytest.mark.parametrize("transport", TRANSPORTS)
several = pytest.mark.parametrize("transport", TRANSPORTS[1:])
no_bfloat16 = pytest.mark.skipif(bfloat16 is None, reason="bfloat16: pip install ml_dtypes")
every_half = pytest.mark.parametrize(
    "dtype", [np.float16, pytest.param(bfloat16, marks=no_bfloat16, id="bfloat16")]
)
LARGE = (3, 20_011)  # more than is packed, and no multiple of a number of ranks


def values(rank, shape, dtype):
    """Numbers whose sums are exact in float32, but not in half precision."""
    return (np.random.RandomState(rank).randint(-127, 128, shape) / 64).astype(dtype)


def array(rank, shape, dtype):
    return nn.NdArray.from_numpy_array(values(rank, shape, dtype))


def total(ranks, shape, dtype, factor=1):
    """In float64, rounded once."""
    exact = sum(values(r, shape, dtype).astype(np.float64) for r in ranks)
    return (exact * factor).astype(np.float32).astype(dtype)


def assert_equal(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.data.astype(np.float32), expected.astype(np.float32))


@everywhere
@every_half
@pytest.mark.parametrize("shape", [(5,), LARGE], ids=["small", "large"])
@pytest.mark.parametrize("division", [False, True])
def test_all_reduce_rounds_once(transport, dtype, shape, division):
    def work():
        comm = connected()
        a = array(comm.rank, shape, dtype)
        comm.all_reduce(a, division=division)
        factor = np.float32(1 / comm.size) if division else 1
        assert_equal(a, total(range(comm.size), shape, dtype, factor))

    on_ranks(transport, work)


@several
@every_half
def test_large_arrays_go_in_pieces(transport, dtype, monkeypatch):
    monkeypatch.setattr(half_precision, "PIECE", 1000)

    def work():
        comm = connected()
        a = array(comm.rank, LARGE, dtype)
        comm.all_reduce(a)
        assert_equal(a, total(range(comm.size), LARGE, dtype))

    on_ranks(transport, work)


@everywhere
@no_bfloat16
def test_lists_may_mix_dtypes_and_sizes(transport):
    kinds = [((4,), bfloat16), ((70_000,), np.float32), (LARGE, bfloat16), ((2, 2), np.float16)]
    kinds += [((), bfloat16), ((0,), bfloat16), ((3,), np.float32), ((6,), bfloat16)]

    def work():
        comm = connected()
        arrays = [array(comm.rank, *kind) for kind in kinds]
        arrays[-1].zero()
        comm.all_reduce(arrays)
        for a, kind in zip(arrays[:-1], kinds, strict=False):
            assert_equal(a, total(range(comm.size), *kind))
        assert arrays[-1].zeroing

    on_ranks(transport, work)


@everywhere
@every_half
@pytest.mark.parametrize("shape", [(5,), LARGE], ids=["small", "large"])
def test_the_other_collectives(transport, dtype, shape):
    def work():
        comm = connected()
        ranks, last = range(comm.size), comm.size - 1
        a = array(comm.rank, shape, dtype)
        comm.reduce(a, last, division=True)
        here = comm.rank == last
        mean = total(ranks, shape, dtype, np.float32(1 / comm.size))
        assert_equal(a, mean if here else values(comm.rank, shape, dtype))
        a = array(comm.rank, shape, dtype)
        comm.bcast(a, last)
        assert_equal(a, values(last, shape, dtype))
        out = [array(99, shape, dtype) for _ in ranks]
        comm.all_gather(array(comm.rank, shape, dtype), out)
        for rank, a in enumerate(out):
            assert_equal(a, values(rank, shape, dtype))
        target = array(99, shape, dtype)
        comm.reduce_scatter(
            [array(10 * comm.rank + i, shape, dtype) for i in ranks], target, division=True
        )
        mine = [10 * rank + comm.rank for rank in ranks]
        assert_equal(target, total(mine, shape, dtype, np.float32(1 / comm.size)))

    on_ranks(transport, work)


@everywhere
@every_half
def test_exact_sums_and_sums_in_a_callback(transport, dtype):
    def work():
        comm = connected()
        shapes = [(7,), LARGE]
        arrays = [array(comm.rank, shape, dtype) for shape in shapes]
        comm.all_reduce(arrays, reproducible=True)
        for a, shape in zip(arrays, shapes, strict=True):
            assert_equal(a, total(range(comm.size), shape, dtype))
        arrays = [array(comm.rank, shape, dtype) for shape in shapes]
        callback = comm.all_reduce_callback(arrays, 100, scale_grad=0.5, same_graph=False)
        callback.begin([a._storage for a in arrays], None)
        callback.finish()
        for a, shape in zip(arrays, shapes, strict=True):
            assert_equal(a, total(range(comm.size), shape, dtype, 0.5))

    on_ranks(transport, work)


@pytest.mark.parametrize("ranks", [1, 4])
@every_half
def test_a_torus_and_compressions(dtype, ranks):
    def work():
        comm = connected()
        shape = (2, 2) if comm.size == 4 else (1, 1)
        options = [
            {"algorithm": C.TorusAllReduce(comm, shape)},
            {"compression": C.HalfCompression()},
            {"compression": C.PowerSGD(1)},
        ]
        for option in options:
            a = array(comm.rank, LARGE, dtype)
            comm.all_reduce(a, **option)
            assert_equal(a, total(range(comm.size), LARGE, dtype))

    C.run_threads(work, ranks)


@several
@no_bfloat16
def test_a_sum_beyond_the_largest_number_is_infinite_and_nan_stays(transport):
    largest = float(np.float32(2.0**127 * (2 - 2.0**-7)))

    def work():
        comm = connected()
        for size in (4, 40_000):
            x = np.zeros(size, bfloat16)
            x[:3] = [largest, -largest, np.nan if comm.rank else 0]
            a = nn.NdArray.from_numpy_array(x)
            comm.all_reduce(a)
            np.testing.assert_array_equal(a.data[:4].astype(float), [np.inf, -np.inf, np.nan, 0])

    on_ranks(transport, work)


def test_other_dtypes_of_two_bytes_are_no_numbers():
    with pytest.raises(DtypeError, match=r"dtype .*V2.* is not a number"):
        nn.NdArray.from_numpy_array(np.zeros(3, "V2"))
