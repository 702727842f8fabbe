"""Compressed sums over ranks: against exact sums, over many steps, with equal bits on all ranks."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ranks import MPI, ON_GPUS, TRANSPORTS, connected, on_ranks

import distnn as nn
import distnn.communicators as C
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S
from distnn.communicators.half_precision import (
    from_bfloat16,
    from_float16,
    to_bfloat16,
    to_float16,
)
from distnn.errors import ArgumentError, CommunicatorError

everywhere = pytest.mark.parametrize("transport", TRANSPORTS)
several = pytest.mark.parametrize("transport", TRANSPORTS[1:])
dtypes = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
PRECISION = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # relative error of one rounding
SHAPES = [(7,), (30, 41), (1,), (2, 3, 5)]


def gradients(rank, step=0, shapes=SHAPES, size=1.0):
    """What a rank brings in a step; every rank knows that of every other."""
    rng = np.random.RandomState(1000 * rank + step)
    return [(size * rng.standard_normal(s)).astype(np.float32) for s in shapes]


def exact(ranks, step=0, shapes=SHAPES, size=1.0):
    """The sums over ranks, in float64, and the sums of the absolute values."""
    everybodys = [gradients(r, step, shapes, size) for r in range(ranks)]
    sums = [sum(a.astype(np.float64) for a in same) for same in zip(*everybodys, strict=True)]
    return sums, [sum(np.abs(a) for a in same) for same in zip(*everybodys, strict=True)]


def arrays(values):
    return [nn.NdArray.from_numpy_array(v) for v in values]


def assert_equal_bits(comm, items):
    """All ranks have the bits of this one."""
    mine = np.concatenate([i.get_data("r").reshape(-1) for i in items]).view(np.int32)
    everybodys = [nn.NdArray.from_numpy_array(mine) for _ in range(comm.size)]
    comm.all_gather(nn.NdArray.from_numpy_array(mine), everybodys)
    for other in everybodys:
        assert np.array_equal(other.data, mine)


@everywhere
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint16, np.int64])
def test_all_to_all_takes_each_part_to_its_rank_whatever_its_length(transport, dtype):
    def part(source, to):
        return (np.arange(3 * source + to) + 10 * source).astype(dtype)

    def work():
        comm = connected()
        parts = [part(comm.rank, r) for r in range(comm.size)]
        out = [np.zeros(3 * r + comm.rank, dtype) for r in range(comm.size)]
        comm.barrier()
        transport = C.Throttled(comm._groups["world"].transport, 1e12)
        transport.all_to_all(parts, out)
        for r, found in enumerate(out):
            np.testing.assert_array_equal(found, part(r, comm.rank))

    on_ranks(transport, work)


@several
def test_large_gradients_go_in_pieces(transport, monkeypatch):
    monkeypatch.setattr("distnn.communicators.compression.PIECE", 50)

    def work():
        comm = connected()
        compression = C.HalfCompression()
        items = arrays(gradients(comm.rank))
        run = [np.zeros(s) for s in SHAPES]
        for _ in range(20):
            for item, g in zip(items, gradients(comm.rank), strict=True):
                item.data = g
            comm.all_reduce(items, True, compression=compression)
            for total, item in zip(run, items, strict=True):
                total += item.data
        sums, absolute = exact(comm.size)
        for total, expected, bound in zip(run, sums, absolute, strict=True):
            limit = 2.1 * PRECISION["float16"] * bound.max() + 1e-5
            np.testing.assert_allclose(
                total * comm.size / 20, expected, atol=limit / 20 * comm.size
            )

    on_ranks(transport, work)


# -- half precision -------------------------------------------------------------------------------


def test_bfloat16_is_that_of_pytorch():
    torch = pytest.importorskip("torch", reason="the oracle: pip install torch==2.13.0")
    rng = np.random.RandomState(0)
    bits = rng.randint(0, 2**32, 200_000, np.uint64).astype(np.uint32)
    bits[:6] = [0, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x3F808000, 0x3F818000]  # infinities, ties
    values = bits.view(np.float32)
    expected = torch.from_numpy(values.copy()).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(from_bfloat16(to_bfloat16(values)), expected)  # NaN equals NaN
    hidden = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(from_bfloat16(to_bfloat16(hidden))).all()


def test_float16_is_that_of_numpy():
    words = np.arange(2**16, dtype=np.uint16)
    halves = words.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(from_float16(words), halves)  # NaN equals NaN
    finite = from_float16(words[:0x7C00])  # without infinities it goes another way
    np.testing.assert_array_equal(finite, halves[:0x7C00])
    rng = np.random.RandomState(0)
    bits = rng.randint(0, 2**32, 300_000, np.uint64).astype(np.uint32)
    ties = (finite[1:] + finite[:-1]) / 2
    for values in (
        bits.view(np.float32),
        (bits & 0x8FFFFFFF | 0x30000000).view(np.float32),  # where float16 has numbers
        halves,
        ties,
        -ties,
        np.nextafter(ties, np.float32(0)),
        np.nextafter(ties, np.float32(np.inf)),
    ):
        with np.errstate(all="ignore"):
            found, expected = to_float16(values), values.astype(np.float16)
        nan = np.isnan(values)
        np.testing.assert_array_equal(found[~nan], expected.view(np.uint16)[~nan])
        assert np.isnan(from_float16(found[nan])).all()


@everywhere
@dtypes
@pytest.mark.parametrize("division", [False, True])
@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
def test_half_sums_are_exact_within_rounding_at_any_magnitude(transport, dtype, division, size):
    def work():
        comm = connected()
        items = arrays(gradients(comm.rank, size=size))
        comm.all_reduce(items, division, compression=C.HalfCompression(dtype))
        sums, absolute = exact(comm.size, size=size)
        for item, total, bound in zip(items, sums, absolute, strict=True):
            limit = PRECISION[dtype] * (bound + np.abs(total) * 1.01) + 1e-10 * size
            limit += np.finfo(np.float32).eps * bound
            factor = comm.size if division else 1
            assert (np.abs(item.data.astype(np.float64) * factor - total) <= limit).all()
            assert item.dtype == np.float32
        assert_equal_bits(comm, items)

    on_ranks(transport, work)


@several
def test_half_adds_up_in_float32(transport):
    """1024 + 0.5 has no float16; added up in float16 the halves would be lost one by one."""

    def work():
        comm = connected()
        first = np.full(comm.size, 1024 if comm.rank == 0 else 0.5, np.float32)
        items = arrays([first])
        comm.all_reduce(items, compression=C.HalfCompression(error_feedback=False))
        expected = np.float16(1024 + 0.5 * (comm.size - 1))
        assert (items[0].data == expected).all()

    on_ranks(transport, work)


@everywhere
@dtypes
def test_with_error_feedback_the_running_sum_stays_within_one_rounding(transport, dtype):
    steps = 100

    def work():
        comm = connected()
        compression = C.HalfCompression(dtype)
        plain = C.HalfCompression(dtype, error_feedback=False)
        items, others = arrays(gradients(0)), arrays(gradients(0))
        run = [np.zeros(s) for s in SHAPES]
        drift = [np.zeros(s) for s in SHAPES]
        true = [np.zeros(s) for s in SHAPES]
        largest = 0.0
        for step in range(steps):
            sums, absolute = exact(comm.size, step)
            for k, g in enumerate(gradients(comm.rank, step)):
                items[k].data, others[k].data = g, g
            comm.all_reduce(items, compression=compression)
            comm.all_reduce(others, compression=plain)
            for k in range(len(SHAPES)):
                run[k] += items[k].data
                drift[k] += others[k].data
                true[k] += sums[k]
                largest = max(largest, absolute[k].max())
            error = max(np.abs(r - t).max() for r, t in zip(run, true, strict=True))
            # One rounding of each rank's value and one of the sum, of values and their residuals;
            # and the sums in float32.
            assert error <= 2.1 * PRECISION[dtype] * largest + step * 2.0**-23 * largest
        if comm.size > 1:
            without = max(np.abs(d - t).max() for d, t in zip(drift, true, strict=True))
            assert without > 2 * error

    on_ranks(transport, work)


@several
@dtypes
def test_values_too_small_for_the_format_arrive_by_error_feedback(transport, dtype):
    """Beside 1 a value of 2^-42 rounds to zero in float16; that of 64 steps does not."""

    def work():
        comm = connected()
        compression = C.HalfCompression(dtype)
        item = arrays([np.zeros(2 * comm.size, np.float32)])[0]
        total = np.zeros(2 * comm.size)
        for _ in range(64):
            item.data = np.tile(np.array([1, 2.0**-42], np.float32), comm.size)
            comm.all_reduce(item, compression=compression)
            total += item.data
        expected = np.tile([64.0, 64 * 2.0**-42], comm.size) * comm.size
        np.testing.assert_allclose(total, expected, rtol=0.2)

    on_ranks(transport, work)


@several
@dtypes
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_infinities_and_nan_come_through_and_do_not_stay(transport, dtype, bad):
    def work():
        comm = connected()
        compression = C.HalfCompression(dtype)
        items = arrays(gradients(comm.rank))
        comm.all_reduce(items, compression=compression)
        kept = [compression.residuals.of(i).copy() for i in items]
        for k, g in enumerate(gradients(comm.rank)):
            if k == 1 and comm.rank == comm.size - 1:
                g[3, 4] = bad
            items[k].data = g
        comm.all_reduce(items, compression=compression)
        np.testing.assert_array_equal(items[1].data[3, 4], np.float32(bad))
        assert np.isfinite(items[0].data).all()
        assert_equal_bits(comm, items)
        for i, before in zip(items, kept, strict=True):
            assert np.array_equal(compression.residuals.of(i), before)

    on_ranks(transport, work)


@several
def test_residuals_follow_the_loss_scale_and_die_with_their_array(transport):
    def work():
        comm = connected()
        compression = C.HalfCompression()
        items = arrays(gradients(comm.rank))
        comm.all_reduce(items, compression=compression)
        before = [compression.residuals.of(i).copy() for i in items]
        assert any(b.any() for b in before)
        compression.loss_scale = 4.0
        for i, b in zip(items, before, strict=True):
            assert np.array_equal(compression.residuals.of(i), 4 * b)
        assert len(compression.residuals) == len(SHAPES)
        comm.barrier()  # the queue holds no array any more
        del items, i
        gc.collect()
        assert len(compression.residuals) == 0

    on_ranks(transport, work)


@everywhere
def test_other_dtypes_are_summed_as_without_compression(transport):
    def work():
        comm = connected()
        items = arrays(
            [np.full(5, 0.1 + comm.rank), np.full(5, 2**40 + comm.rank), np.zeros(0, np.float32)]
        )
        comm.all_reduce(items, compression=C.HalfCompression())
        ranks = range(comm.size)
        np.testing.assert_allclose(items[0].data, sum(0.1 + r for r in ranks), rtol=1e-14)
        assert (items[1].data == sum(2**40 + r for r in ranks)).all()

    on_ranks(transport, work)


# -- PowerSGD -------------------------------------------------------------------------------------


def of_rank(rank, r, shape, dtype=np.float32):
    """A matrix of rank r; over all ranks they share their rows' space, so that sums have it too."""
    space = np.random.RandomState(r).standard_normal((r, int(np.prod(shape[1:]))))
    left = np.random.RandomState(50 + rank).standard_normal((shape[0], r))
    return (left @ space).reshape(shape).astype(dtype)


@everywhere
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("division", [False, True])
def test_powersgd_is_exact_for_gradients_of_its_rank_and_for_small_arrays(
    transport, dtype, division
):
    shapes = [(5,), (40, 30), (3, 4), (24, 4, 3, 3), (9,)]

    def work():
        comm = connected()
        compression = C.PowerSGD(rank=3)

        def brought(rank):
            return [
                of_rank(rank, 3, s, dtype) if len(s) > 1 else np.full(s, 0.1 + rank, dtype)
                for s in shapes
            ]

        items = arrays(brought(comm.rank))
        assert [compression.compresses(i) for i in items] == [False, True, False, True, False]
        comm.all_reduce(items, division, compression=compression)
        everybodys = [brought(r) for r in range(comm.size)]
        rtol = 1e-4 if dtype == np.float32 else 1e-12
        for k, item in enumerate(items):
            expected = sum(one[k].astype(np.float64) for one in everybodys)
            expected = expected / (comm.size if division else 1)
            error = np.linalg.norm(item.data - expected)
            assert error <= rtol * np.linalg.norm(expected)
            assert item.dtype == dtype
        assert_equal_bits(comm, items)

    on_ranks(transport, work)


@several
@pytest.mark.parametrize("size", [1.0, 1e-25, 1e15])
def test_powersgd_sends_what_it_left_out_later(transport, size):
    """The running sum of results and residuals is the exact running sum, at every step."""

    def work():
        comm = connected()
        compression = C.PowerSGD(rank=1)
        shape = (20, 30)
        item = arrays([np.zeros(shape, np.float32)])[0]
        run, true = np.zeros(shape), np.zeros(shape)
        for step in range(30):
            sums, _ = exact(comm.size, step, [shape], size)
            item.data = gradients(comm.rank, step, [shape], size)[0]
            comm.all_reduce(item, compression=compression)
            run += item.data
            true += sums[0]
            assert np.linalg.matrix_rank(item.data.astype(np.float64) / size, tol=1e-3) == 1
            kept = compression.residuals.of(item).reshape(shape) / np.float32(size)
            kept = nn.NdArray.from_numpy_array(kept.astype(np.float64))
            comm.all_reduce(kept)
            np.testing.assert_allclose(run / size + kept.data, true / size, atol=1e-3)

    on_ranks(transport, work)


@several
def test_powersgd_with_a_constant_gradient_finds_its_best_approximation(transport):
    """Warm start: without error feedback's part, repeated steps are a power iteration."""

    def work():
        comm = connected()
        compression = C.PowerSGD(rank=2)
        rng = np.random.RandomState(3)
        left = np.linalg.qr(rng.standard_normal((20, 6)))[0]
        right = np.linalg.qr(rng.standard_normal((30, 6)))[0]
        strengths = np.array([8, 5, 1, 0.5, 0.2, 0.1])
        matrix = (left * strengths @ right.T).astype(np.float32)
        item = arrays([matrix])[0]
        for _ in range(12):
            item.data = matrix
            compression.residuals.scale(0)
            comm.all_reduce(item, division=True, compression=compression)
        best = left[:, :2] * strengths[:2] @ right[:, :2].T  # Eckart and Young
        np.testing.assert_allclose(item.data, best, atol=1e-4)

    on_ranks(transport, work)


@several
def test_powersgd_solves_least_squares(transport):
    def work():
        comm = connected()
        rng = np.random.RandomState(7)
        x = rng.standard_normal((comm.size, 60, 12))
        y = rng.standard_normal((comm.size, 60, 20))
        joined = x.reshape(-1, 12), y.reshape(-1, 20)
        best = np.linalg.lstsq(*joined, rcond=None)[0]
        w = np.zeros((12, 20))
        compression = C.PowerSGD(rank=1)
        grad = nn.NdArray.from_numpy_array(w)
        for _ in range(1500):
            grad.data = x[comm.rank].T @ (x[comm.rank] @ w - y[comm.rank]) / 60
            comm.all_reduce(grad, division=True, compression=compression)
            w -= 0.05 * grad.data
        np.testing.assert_allclose(w, best, atol=1e-6)

    on_ranks(transport, work)


@several
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_powersgd_passes_infinities_and_nan_on_as_nan_and_goes_on(transport, bad):
    def work():
        comm = connected()
        compression = C.PowerSGD(rank=2)
        items = arrays([of_rank(comm.rank, 2, (20, 30)), of_rank(comm.rank, 2, (20, 40))])
        comm.all_reduce(items, compression=compression)
        kept = compression.residuals.of(items[0]).copy()
        broken = of_rank(comm.rank, 2, (20, 30))
        if comm.rank == comm.size - 1:
            broken[2, 3] = bad
        items[0].data, items[1].data = broken, of_rank(comm.rank, 2, (20, 40))
        comm.all_reduce(items, compression=compression)
        assert np.isnan(items[0].data).all()
        assert np.array_equal(compression.residuals.of(items[0]), kept)
        expected = sum(of_rank(r, 2, (20, 40)) for r in range(comm.size))
        np.testing.assert_allclose(items[1].data, expected, atol=1e-3)
        items[0].data = of_rank(comm.rank, 2, (20, 30))
        comm.all_reduce(items[:1], compression=compression)
        expected = sum(of_rank(r, 2, (20, 30)) for r in range(comm.size))
        np.testing.assert_allclose(items[0].data, expected, atol=1e-3)

    on_ranks(transport, work)


@several
def test_powersgd_of_zeros_is_zero(transport):
    def work():
        comm = connected()
        item = arrays([np.zeros((20, 30), np.float32)])[0]
        comm.all_reduce(item, compression=C.PowerSGD())
        assert not item.data.any()

    on_ranks(transport, work)


@several
def test_powersgd_needs_equal_random_states(transport):
    def work():
        comm = connected()
        compression = C.PowerSGD(2, np.random.RandomState(comm.rank))
        with pytest.raises(CommunicatorError, match=r"random_state .* on rank 1"):
            comm.all_reduce(arrays([np.ones((20, 30), np.float32)]), compression=compression)

    on_ranks(transport, work)


@pytest.mark.parametrize("transport", ["threads 2", "threads 4", MPI, *ON_GPUS])
def test_training_with_powersgd_learns_with_equal_bits_on_all_ranks(transport):
    def work():
        comm = connected()
        plain, _ = train(comm, 150)
        losses, parameters = train(comm, 150, compression=C.PowerSGD(rank=2))
        assert losses != plain
        assert np.mean(losses[-10:]) < np.mean(losses[:10]) / 5
        assert_equal_bits(comm, parameters)

    on_ranks(transport, work)


# -- in training ----------------------------------------------------------------------------------


def train(comm, steps, **ways):
    """Losses over the same global batch, and the parameters."""
    rng = np.random.RandomState(1)
    images, teacher = rng.standard_normal((steps, 16, 12)), rng.standard_normal((12, 3))
    share = 16 // comm.size
    mine = slice(comm.rank * share, (comm.rank + 1) * share)
    nn.clear_parameters()
    nn.seed(313)
    x, t = nn.Variable((share, 12)), nn.Variable((share, 3))
    y = PF.affine(F.tanh(PF.affine(x, 24, name="1")), 3, name="2")
    loss = F.mean(F.squared_error(y, t))
    solver = S.Momentum(0.05)
    solver.set_parameters(nn.get_parameters())
    grads = [p.grad for p in nn.get_parameters().values()]
    callback = comm.all_reduce_callback(grads, 100, division=True, **ways)
    losses = []
    for step in range(steps):
        x.d, t.d = images[step, mine], images[step, mine] @ teacher
        loss.forward()
        solver.zero_grad()
        loss.backward(communicator_callbacks=callback)
        solver.update()
        total = nn.NdArray.from_numpy_array(loss.d.astype(np.float64))
        comm.all_reduce(total, division=True)
        losses.append(float(total.data))
    return losses, [p.data for p in nn.get_parameters().values()]


@pytest.mark.parametrize("transport", ["single", "threads 2", "threads 4", MPI, *ON_GPUS])
@dtypes
def test_training_with_half_gradients_follows_plain_training(transport, dtype):
    def work():
        comm = connected()
        plain, _ = train(comm, 40)
        losses, parameters = train(comm, 40, compression=C.HalfCompression(dtype))
        assert plain[-1] < plain[0] / 3
        np.testing.assert_allclose(losses, plain, rtol=0.02 if dtype == "float16" else 0.1)
        if comm.size > 1:
            assert losses != plain
        assert_equal_bits(comm, parameters)

    on_ranks(transport, work)


@several
def test_a_gradient_that_some_rank_lacks_counts_as_zero(transport):
    def work():
        comm = connected()
        compression = C.HalfCompression()
        items = arrays(gradients(comm.rank))
        items[0].zero()
        if comm.rank:
            items[1].zero()
        comm.all_reduce(items, compression=compression)
        assert items[0].zeroing
        np.testing.assert_allclose(items[1].data, gradients(0)[1], rtol=2.0**-9)

    on_ranks(transport, work)


# -- what is refused ------------------------------------------------------------------------------


@several
def test_ranks_must_compress_alike(transport):
    def work():
        comm = connected()
        dtype = "float16" if comm.rank == 0 else "bfloat16"
        with pytest.raises(CommunicatorError, match=r"bfloat16.*on rank 1"):
            comm.all_reduce(arrays(gradients(0)), compression=C.HalfCompression(dtype))

    on_ranks(transport, work)


def test_settings_that_make_no_sense_are_refused():
    comm = connected()
    with pytest.raises(ArgumentError, match="dtype is 'float8'"):
        C.HalfCompression("float8")
    with pytest.raises(ArgumentError, match="rank is 0"):
        C.PowerSGD(0)
    with pytest.raises(ArgumentError, match="loss_scale is 0"):
        C.HalfCompression().loss_scale = 0
    with pytest.raises(ArgumentError, match=r"'half'; pass an object such as C.HalfCompression"):
        comm.all_reduce(arrays(gradients(0)), compression="half")
    with pytest.raises(ArgumentError, match="pass one of the two"):
        comm.all_reduce_callback(
            arrays(gradients(0)), compression=C.HalfCompression(), algorithm=C.HalfCompression()
        )


# -- slow links -----------------------------------------------------------------------------------


def exchange_time(compression=None):
    """Seconds that a sum of 100000 gradients takes on this link; their conversion is far below."""
    comm = connected()
    gradient = np.random.RandomState(0).standard_normal((500, 200)).astype(np.float32)
    item = arrays([gradient])[0]
    comm.barrier()
    begin = time.perf_counter()
    comm.all_reduce(item, compression=compression() if compression else None)
    return time.perf_counter() - begin


def test_a_link_takes_the_time_of_its_bytes_and_compression_saves_it():
    link = (1e6, 0.0)  # 400 kB of float32 there and back take 0.4 s

    def measure(*compression):  # the best of three: the machine may be busy
        return min(C.run_threads(exchange_time, 2, *compression, link=link)[0] for _ in range(3))

    assert 0.4 <= measure() < 0.6
    assert 0.2 <= measure(C.HalfCompression) < 0.35
    assert measure(C.PowerSGD) < 0.1


def test_every_collective_waits_for_the_latency_and_the_values_are_those_without(monkeypatch):
    def work():
        comm = connected()
        a, b = arrays([np.arange(3.0), np.zeros(3)])
        calls = [
            lambda: comm.barrier(),
            lambda: comm.all_reduce(a),
            lambda: comm.bcast(a, 1),
            lambda: comm.reduce(b, 0),
            lambda: comm.all_gather(a, arrays([np.zeros(3)] * 2)),
            lambda: comm.reduce_scatter([a, a], b),
        ]
        for call in calls:
            begin = time.perf_counter()
            call()
            assert time.perf_counter() - begin >= 0.02
        assert a.data.tolist() == [0, 2, 4]
        assert b.data.tolist() == [0, 4, 8]
        return type(comm._groups["world"].transport.host).__name__

    assert C.run_threads(work, 2, link=(1e9, 0.01)) == ["Throttled"] * 2
    monkeypatch.setenv("DISTNN_LINK", "1e9,0.01")
    assert C.run_threads(work, 2) == ["Throttled"] * 2
    monkeypatch.setenv("DISTNN_LINK", "fast")
    with pytest.raises(ArgumentError, match="DISTNN_LINK is 'fast'; set it to"):
        connected()
    with pytest.raises(ArgumentError, match="bytes_per_second is 0 and latency"):
        C.Throttled(None, 0, 0)


def test_the_benchmark_prints_one_line_of_json(tmp_path):
    script = Path(__file__).resolve().parent.parent / "scripts" / "bench_compression.py"
    found = subprocess.run(
        [sys.executable, str(script), "--elements", "1", "--repeats", "1"],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
    )
    assert found.returncode == 0, found.stderr
    (line,) = found.stdout.splitlines()
    times = json.loads(line)["milliseconds"]
    assert set(times) >= {"none", "1 Gbit/s", "100 Mbit/s"}
    # 512 x 513 float32 at 12.5 MB/s, and half of it
    assert times["100 Mbit/s"]["plain"] >= 84
    assert times["100 Mbit/s"]["float16"] >= 42
