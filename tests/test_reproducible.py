"""The reproducible mode: any number of ranks gives the same bits."""

from __future__ import annotations

import itertools
import math
import zlib

import numpy as np
import pytest
from launching import finish, needs_mpi, start, write
from ranks import TRANSPORTS, connected, on_ranks

import distnn as nn
import distnn.communicators as C
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S
from distnn.communicators.exact_sum import exact_sum
from distnn.communicators.transport import SingleTransport
from distnn.cpu import twin
from distnn.errors import ArgumentError, CommunicatorError, DtypeError, GraphError, ShapeError
from distnn.parameter import get_parameter_or_create

everywhere = pytest.mark.parametrize("transport", TRANSPORTS)
RANKS = [1, 2, 3, 4, 6]
WORKERS = 12
DTYPES = [np.float16, np.float32, np.float64]


# -- the exact sum --------------------------------------------------------------------------------


def summed(summands, divisor=1):
    """The exact sum of arrays on one rank."""
    out = np.full_like(summands[0], 7)
    exact_sum([summands], [out], len(summands), [divisor], SingleTransport())
    return out


def fsum(summands):
    """Element by element, exact but for one rounding to float64."""
    columns = np.stack([np.asarray(s, np.float64).reshape(-1) for s in summands], 1)
    return np.array([math.fsum(column) for column in columns]).reshape(summands[0].shape)


def random(rng, dtype, shape, decades):
    """Numbers of both signs over 10^-decades to 1."""
    signs = rng.choice([-1.0, 1.0], shape)
    return (signs * 10.0 ** rng.uniform(-decades, 0, shape)).astype(dtype)


@pytest.mark.parametrize("count", [1, 2, 5, 12, 64, 1000])
@pytest.mark.parametrize("decades", [0.5, 3, 7])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_sums_of_float16_and_float32_are_rounded_once(dtype, decades, count):
    rng = np.random.RandomState(count)
    summands = [random(rng, dtype, (7, 11), decades) for _ in range(count)]
    # fsum rounds to float64 first, which may move it across a tie of the narrower dtype
    expected = fsum(summands)
    found = summed(summands)
    assert found.dtype == dtype
    largest = max(float(np.abs(s).max()) for s in summands)
    quantum = largest * count * 2.0 ** (count.bit_length() - 61)
    half_ulp = np.spacing(np.abs(expected).astype(dtype)).astype(np.float64) / 2
    error = np.abs(found.astype(np.float64) - expected)
    assert np.all(error <= half_ulp * (1 + 1e-7) + quantum)


@pytest.mark.parametrize("count", [1, 3, 12, 100])
def test_the_error_of_float64_keeps_the_documented_bound(count):
    rng = np.random.RandomState(count)
    summands = [random(rng, np.float64, (50,), 12) for _ in range(count)]
    largest = max(float(np.abs(s).max()) for s in summands)
    log = (count - 1).bit_length()
    expected = fsum(summands) / count
    error = np.abs(summed(summands, count) - expected)
    assert np.all(error <= largest * 2.0 ** (log - 62) + 3 * np.spacing(np.abs(expected)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_cancels_leaves_the_rest(dtype):
    big = np.array([2.0**10], dtype)
    rest = np.array([2.0**-8], dtype)
    assert summed([big, rest, -big])[0] == 2.0**-8


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_mean_of_equal_arrays_is_that_array(dtype):
    values = random(np.random.RandomState(0), dtype, (1000,), 2)
    for count in (1, 3, 7, 12):
        np.testing.assert_array_equal(summed([values] * count, count), values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_of_the_range(dtype):
    info = np.finfo(dtype)
    tiny = np.array([info.smallest_subnormal, -3 * info.smallest_subnormal, 0], dtype)
    np.testing.assert_array_equal(summed([tiny, tiny]), 2 * tiny)
    np.testing.assert_array_equal(summed([tiny] * 3, 3), tiny)
    huge = np.array([info.max, -info.max], dtype)
    np.testing.assert_array_equal(summed([huge] * 3, 3), huge)  # the sum itself would overflow
    np.testing.assert_array_equal(summed([huge, huge]), [np.inf, -np.inf])
    np.testing.assert_array_equal(summed([np.zeros(3, dtype)] * 2), np.zeros(3))
    assert summed([np.zeros((0, 3), dtype)]).shape == (0, 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_come_out_where_ieee_sums_have_them(dtype):
    special = [1.5, np.inf, -np.inf, np.nan]
    pairs = np.array(list(itertools.product(special, special)), dtype)
    a, b = pairs[:, 0].copy(), pairs[:, 1].copy()
    with np.errstate(invalid="ignore"):
        expected = a + b
    np.testing.assert_array_equal(summed([a, b]), expected)
    # elements without them keep their sums, also beside others that have them
    neighbours = summed([np.array([1, np.nan], dtype), np.array([2, 5], dtype)])
    np.testing.assert_array_equal(neighbours, np.array([3, np.nan], dtype))


def difficult(worker, dtype):
    """Arrays of one virtual worker: huge ranges, subnormals, zeros, NaN and infinities."""
    rng = np.random.RandomState(worker)
    info = np.finfo(dtype)
    arrays = [
        random(rng, dtype, (5, 7), 2),
        random(rng, dtype, (301,), {2: 6, 4: 40, 8: 290}[np.dtype(dtype).itemsize]),
        (rng.randint(-9, 9, 40) * info.smallest_subnormal).astype(dtype),
        np.zeros(3, dtype),
        random(rng, dtype, (60,), 1) * dtype(info.max / 16),
    ]
    special = random(rng, dtype, (80,), 1)
    special[rng.randint(0, 80, 3)] = [np.nan, np.inf, -np.inf]
    return [*arrays, special]


def bytes_of(arrays):
    return b"".join(np.asarray(a).tobytes() for a in arrays)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_order_and_no_partition_changes_a_bit(dtype, monkeypatch):
    everybodys = [difficult(w, dtype) for w in range(WORKERS)]
    found = set()
    for seed in range(5):
        order = np.random.RandomState(seed).permutation(WORKERS)
        found.add(bytes_of(summed([everybodys[w][i] for w in order], 12) for i in range(6)))
    monkeypatch.setattr("distnn.communicators.exact_sum._MESSAGE", 64)  # arrays over messages
    monkeypatch.setattr("distnn.communicators.exact_sum._PART", 21)
    monkeypatch.setattr("distnn.communicators.exact_sum._BLOCK", 10)

    def work():
        transport = connected()._transport("test")
        mine = everybodys[transport.rank :: transport.size]
        outs = [np.empty_like(a) for a in everybodys[0]]
        exact_sum([[arrays[i] for arrays in mine] for i in range(6)], outs, 12, [12] * 6, transport)
        return bytes_of(outs)

    for ranks in (1, 2, 3, 5):
        found.update(C.run_threads(work, ranks))
    assert len(found) == 1
    # float sums in these orders do differ: the test would see it
    naive = {bytes_of([sum(e[0] for e in everybodys[k:] + everybodys[:k])]) for k in range(9)}
    assert len(naive) > 1


# -- all_reduce(reproducible=True) ----------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("division", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_reproducible_all_reduce_gives_the_exact_sum(transport, division, dtype):
    shapes = [(3, 4), (70_000,), ()]

    def values(rank):
        rng = np.random.RandomState(rank)
        return [rng.uniform(-1, 1, s).astype(dtype) for s in shapes]

    def work():
        comm = connected()
        arrays = [nn.NdArray.from_numpy_array(v) for v in values(comm.rank)]
        whole = nn.NdArray.from_numpy_array(np.arange(3) + comm.rank)
        comm.all_reduce([*arrays, *([] if division else [whole])], division, reproducible=True)
        for i, a in enumerate(arrays):
            expected = fsum([values(r)[i] for r in range(comm.size)])
            expected = expected / (comm.size if division else 1)
            np.testing.assert_array_equal(a.data, expected.astype(dtype))
        if not division:
            everybodys = [np.arange(3) + r for r in range(comm.size)]
            np.testing.assert_array_equal(whole.data, sum(everybodys))

    on_ranks(transport, work)


@everywhere
def test_a_reproducible_all_reduce_leaves_out_what_no_rank_has(transport):
    def work():
        comm = connected()
        nowhere, somewhere = nn.Variable((3,)).grad, nn.Variable((3,)).grad
        if comm.rank == 0:
            somewhere.data = np.array([1, np.inf, 3], np.float32)
        comm.all_reduce([nowhere, somewhere], reproducible=True)
        assert nowhere.zeroing
        np.testing.assert_array_equal(somewhere.data, [1, np.inf, 3])

    on_ranks(transport, work)


def test_a_window_of_an_array_keeps_what_lies_around_it():
    def work():
        comm = connected()
        a = nn.NdArray.from_numpy_array(np.arange(6, dtype=np.float32))
        comm.all_reduce(a.narrow(0, 2, 2), reproducible=True)
        np.testing.assert_array_equal(a.data, [0, 1, 4, 6, 4, 5])

    C.run_threads(work, 2)


def test_a_reproducible_sum_in_a_group_is_that_of_its_ranks():
    def work():
        comm = connected()
        group = comm.new_group(("some", [0, 2]))
        a = nn.NdArray.from_numpy_array(np.float32([comm.rank + 1]))
        if comm.rank != 1:
            comm.all_reduce(a, division=True, group=group, reproducible=True)
        return float(a.data[0])

    assert C.run_threads(work, 3) == [2, 2, 2]


# -- training -------------------------------------------------------------------------------------

TRAINING = '''
import numpy as np
import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S


def network(x):
    h = PF.convolution(x, 5, (3, 3), pad=(1, 1), name="1")
    h = F.tanh(PF.batch_normalization(h, name="1"))
    h = F.dropout(F.max_pooling(h, (2, 2)), 0.3)
    h = F.relu(PF.affine(h, 13, name="2"))
    h = F.dropout(PF.batch_normalization(h, name="2"), 0.2, seed=5)
    return PF.affine(h, 3, name="3")


def train(comm, dynamic, solver_name, steps=50, workers=12, examples=24):
    """Train; returns the bits of parameters and statistics, by name."""
    rng = np.random.RandomState(1)
    nn.seed(7)
    rows = examples // workers
    x, t = nn.Variable((rows, 1, 6, 6)), nn.Variable((rows, 1))
    solver = S.Momentum(0.05) if solver_name == "Momentum" else S.Adam(0.01)
    if not dynamic:
        loss = F.mean(F.softmax_cross_entropy(network(x), t))
        solver.set_parameters(nn.get_parameters())
    for _ in range(steps):
        images = rng.uniform(-1, 1, (examples, 1, 6, 6)).astype(np.float32)
        labels = rng.randint(0, 3, (examples, 1))
        solver.zero_grad()
        for x.d, t.d in comm.virtual_workers(workers, (images, labels)):
            if dynamic:
                with nn.auto_forward():
                    loss = F.mean(F.softmax_cross_entropy(network(x), t))
            else:
                loss.forward(clear_no_need_grad=True)
            loss.backward(clear_buffer=True)
        if dynamic:
            solver.set_parameters(nn.get_parameters(), reset=False, retain_state=True)
        solver.update()
    found = nn.get_parameters(grad_only=False)
    return {name: p.data.get_data("r").tobytes() for name, p in found.items()}
'''
_NAMES: dict = {}
exec(TRAINING, _NAMES)
train = _NAMES["train"]


def trained_by_threads(ranks, *arguments):
    """The bits after training on `ranks` threads, which all ranks must have."""
    found = C.run_threads(lambda: train(connected(), *arguments), ranks, timeout=200)
    assert all(f == found[0] for f in found)
    return found[0]


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["Momentum", "Adam"])
def test_any_number_of_ranks_and_both_kinds_of_graph_give_the_same_bits(solver):
    expected = trained_by_threads(1, False, solver)
    assert {"1/bn/mean", "1/bn/var", "2/bn/var", "3/affine/W"} <= set(expected)
    assert all(np.isfinite(np.frombuffer(b, np.float32)).all() for b in expected.values())
    for ranks in RANKS:
        for dynamic in (False, True):
            if (ranks, dynamic) != (1, False):
                assert trained_by_threads(ranks, dynamic, solver) == expected


def test_other_numbers_of_virtual_workers_compute_something_else():
    few, many = (trained_by_threads(1, False, "Momentum", 2, workers) for workers in (4, 12))
    assert few != many


def test_training_on_one_rank_needs_no_other():
    assert train(connected(), False, "Adam", 3) == trained_by_threads(3, True, "Adam", 3)


JOB = (
    TRAINING
    + """

import zlib
import distnn.communicators as C

comm = C.MultiProcessDataParallelCommunicator(timeout=100)
comm.init()
found = {}
for solver in ("Momentum", "Adam"):
    nn.clear_parameters()
    found[solver] = train(comm, solver == "Adam", solver)
crc = {solver: zlib.crc32(b"".join(bits.values())) for solver, bits in found.items()}
print(f"rank {comm.rank} of {comm.size}: {crc}", flush=True)
"""
)


@needs_mpi
@pytest.mark.slow
def test_real_jobs_of_1_2_3_4_and_6_ranks_give_the_same_bits(tmp_path):
    if nn.get_current_context().backend != ["cpu:float"]:
        pytest.skip("the jobs run on the CPU, whose bits are not those of the GPU here")
    crc = {
        solver: zlib.crc32(b"".join(trained_by_threads(2, False, solver).values()))
        for solver in ("Momentum", "Adam")
    }
    same = f"import distnn as nn\nfrom distnn.cpu import twin\ntwin.SMALLEST = {twin.SMALLEST}\n"
    same += f"nn.set_cpu_kernels({nn.get_cpu_kernels()!r})\n"
    for ranks in RANKS:
        options = ["-n", str(ranks), "--timeout", "120"]
        job = start(*options, write(tmp_path, same + JOB), cwd=tmp_path)
        finished = finish(*job, timeout=150)
        assert finished.status == 0, finished.err
        for rank in range(ranks):
            assert f"rank {rank} of {ranks}: {crc}" in finished.out
        assert not finished.survivors()


def test_the_gradient_is_that_of_the_whole_batch():
    """Against float64 NumPy: loss = mean(log(1 + exp(-t (x w + b)))) over the batch."""
    rng = np.random.RandomState(0)
    x0 = rng.randn(24, 5).astype(np.float32)
    t0 = rng.choice([-1.0, 1.0], (24, 1)).astype(np.float32)
    w0 = rng.randn(5, 1).astype(np.float32)
    wide, signs, w = x0.astype(np.float64), t0.astype(np.float64), w0.astype(np.float64)
    slope = -signs / (1 + np.exp(signs * (wide @ w))) / 24
    expected = {"w": wide.T @ slope, "b": slope.sum(0)}

    def work(division):
        comm = connected()
        w = get_parameter_or_create("w", (5, 1), w0)
        b = get_parameter_or_create("b", (1,))
        x, t = nn.Variable((2, 5)), nn.Variable((2, 1))
        loss = F.mean(F.log(1 + F.exp(-t * F.affine(x, w, b))))
        for x.d, t.d in comm.virtual_workers(12, [x0, t0], division=division):
            loss.forward()
            loss.backward()
        for name, p in nn.get_parameters().items():
            scale = 1 if division else 12
            np.testing.assert_allclose(p.g, scale * expected[name], rtol=2e-6)

    for ranks in (1, 3, 4):
        C.run_threads(work, ranks, True)
        C.run_threads(work, ranks, False)


def test_statistics_are_the_mean_over_parts_of_one_update():
    images = np.random.RandomState(0).randn(12, 2, 3).astype(np.float32) * [[[2], [5]]]

    def work():
        comm = connected()
        x = nn.Variable((2, 2, 3))
        y = PF.batch_normalization(x, decay_rate=0.8)
        for _ in range(2):
            for x.d in comm.virtual_workers(6, images):
                y.forward()
        mean, var = (nn.get_parameters(grad_only=False)[f"bn/{n}"].d for n in ("mean", "var"))
        parts = images.reshape(6, 2, 2, 3).transpose(0, 2, 1, 3).reshape(6, 2, 6)
        expected_mean = 0.36 * parts.mean((0, 2))
        expected_var = 0.64 + 0.36 * parts.var(2, ddof=1).mean(0)
        np.testing.assert_allclose(mean.reshape(-1), expected_mean, rtol=1e-5)
        np.testing.assert_allclose(var.reshape(-1), expected_var, rtol=1e-5)

    for ranks in (1, 2, 3):
        C.run_threads(work, ranks)


@pytest.mark.parametrize("seed", [-1, 3])
@pytest.mark.parametrize("dynamic", [False, True])
def test_masks_depend_on_the_virtual_worker_and_the_step_only(dynamic, seed):
    def work():
        comm = connected()
        x = nn.Variable.from_numpy_array(np.ones((1, 40)))
        y = F.dropout(x, 0.5, seed=seed)
        masks = {}
        for step in range(3):
            for x.d in comm.virtual_workers(6, np.ones((6, 40))):
                worker = nn.context.current_world().worker
                if dynamic:
                    with nn.auto_forward():
                        y = F.dropout(x, 0.5, seed=seed)
                else:
                    y.forward()
                masks[step, worker] = y.d.tobytes()
        assert nn.context.current_world().worker == comm.rank
        return masks

    alone = C.run_threads(work, 1)[0]
    assert len(set(alone.values())) == 18  # each worker in each step its own
    for ranks in (2, 3, 6):
        together = {}
        for masks in C.run_threads(work, ranks):
            assert not masks.keys() & together.keys()
            together |= masks
        assert together == alone


def test_a_part_that_draws_more_moves_all_ranks():
    """Stochastic depth: worker 5 alone draws twice."""

    def work():
        comm = connected()
        world = nn.context.current_world()
        with nn.auto_forward():
            for _ in range(2):
                for _part in comm.virtual_workers(6, np.ones(6)):
                    for _ in range(2 if world.worker == 5 else 1):
                        F.dropout(nn.Variable((2,)), 0.5)
        return world.draws

    assert C.run_threads(work, 1) == [4]
    assert C.run_threads(work, 3) == [4] * 3


def one_step(comm, layers_of, workers=6):
    """A dynamic step in which each worker uses layers of its own; gradients by name."""
    world = nn.context.current_world()
    x0 = np.random.RandomState(0).randn(workers, 3).astype(np.float32)
    for name in ("always", "sometimes", "never"):
        get_parameter_or_create(name, (1, 3), np.ones((1, 3)))
    with nn.auto_forward():
        x = nn.Variable((1, 3))
        for x.d in comm.virtual_workers(workers, x0):
            h = x
            for name in layers_of(world.worker):
                h = h * get_parameter_or_create(name, (1, 3))
            F.sum(h).backward()
    return {n: None if p.grad.zeroing else p.g.copy() for n, p in nn.get_parameters().items()}, x0


def test_gradients_of_layers_that_some_parts_leave_out():
    def work():
        found, x0 = one_step(
            connected(), lambda worker: ["always", "sometimes"][: 1 + (worker == 4)]
        )
        assert found["never"] is None
        np.testing.assert_allclose(found["always"], x0.mean(0, keepdims=True), rtol=1e-6)
        np.testing.assert_allclose(found["sometimes"], x0[4:5] / 6, rtol=1e-6)
        return bytes_of([found["always"], found["sometimes"]])

    assert len({bits for ranks in (1, 2, 6) for bits in C.run_threads(work, ranks)}) == 1


def test_statistics_that_some_parts_leave_alone():
    def work():
        comm = connected()
        world = nn.context.current_world()
        count = get_parameter_or_create("count", (1,), np.array([10.0]), need_grad=False)
        with nn.auto_forward():
            for _part in comm.virtual_workers(6, np.ones(6)):
                if world.worker in (4, 5):
                    assert count.d[0] == 10
                    F.assign(count, count + world.worker)
        return float(count.d[0])

    for ranks in (1, 2, 3, 6):
        assert C.run_threads(work, ranks) == [11.5] * ranks


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_in_one_part_reaches_all_ranks(value):
    def work():
        comm = connected()
        x0 = np.ones((6, 3), np.float32)
        x0[5, 1] = value
        w = get_parameter_or_create("w", (1, 3), np.ones((1, 3)))
        x = nn.Variable((1, 3))
        y = F.sum(x * w)
        solver = S.Sgd(1)
        solver.set_parameters(nn.get_parameters())
        for x.d in comm.virtual_workers(6, x0):
            y.forward()
            y.backward()
        np.testing.assert_array_equal(w.g, [[1, value, 1]])
        assert solver.check_inf_or_nan_grad()

    for ranks in (1, 2, 6):
        C.run_threads(work, ranks)


def test_only_the_given_parameters_are_averaged():
    def work(as_dict):
        comm = connected()
        x = nn.Variable((1, 3))
        y = F.sum(PF.affine(PF.affine(x, 3, name="a"), 2, name="b"))
        with nn.parameter_scope("b"):
            chosen = nn.get_parameters()
        unchosen = nn.get_parameters()["a/affine/W"]
        for _ in range(2):
            for p in chosen.values():
                p.grad.zero()
            given = chosen if as_dict else list(chosen.values())
            for x.d in comm.virtual_workers(2, np.eye(2, 3), parameters=given):
                y.forward()
                y.backward()
            np.testing.assert_allclose(chosen["affine/b"].g, 1)
        return unchosen.g.copy()

    for as_dict in (False, True):
        a, b = C.run_threads(work, 2, as_dict)
        assert not np.array_equal(a, b)  # added up by each rank alone


# -- leaving early --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["break", "raise"])
def test_a_loop_that_is_left_early_is_undone(how):
    def work():
        comm = connected()
        world = nn.context.current_world()
        x = nn.Variable((2, 3))
        y = F.sum(F.dropout(PF.batch_normalization(PF.affine(x, 4)), 0.5))
        x0 = np.random.RandomState(0).randn(12, 3)

        def state():
            return bytes_of(
                p.data.get_data("r") for p in nn.get_parameters(grad_only=False).values()
            )

        before = state()
        seen = 0
        try:
            for x.d in comm.virtual_workers(6, x0):
                y.forward()
                y.backward()
                seen += 1
                if seen == 2 and how == "break":
                    break
                if seen == 2:
                    raise KeyError("the data are gone")
        except KeyError:
            assert how == "raise"
        assert world.worker == comm.rank
        assert world.draws == 0
        assert world.before_effect is None
        assert state() == before
        assert all(p.grad.zeroing for p in nn.get_parameters().values())
        for x.d in comm.virtual_workers(6, x0):  # and the next loop is as if there had been none
            y.forward()
            y.backward()
        assert state() != before
        return state() + bytes_of(p.g for p in nn.get_parameters().values())

    found = [bits for ranks in (1, 2) for bits in C.run_threads(work, ranks)]
    assert len(set(found)) == 1


def test_leaving_on_one_rank_only_is_an_error_on_all():
    def work():
        comm = connected(timeout=2)
        for _part in comm.virtual_workers(4, np.ones(4)):
            if comm.rank == 1:
                break
        comm.barrier()

    with pytest.raises(CommunicatorError, match="ranks call different collectives"):
        C.run_threads(work, 2)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "batch", "error", "message"),
    [
        (3, np.ones(6), ArgumentError, "workers is 3 and there are 2 ranks"),
        (0, np.ones(6), ArgumentError, "workers is 0"),
        (-2, np.ones(6), ArgumentError, "workers is -2"),
        (2.0, np.ones(6), ArgumentError, r"workers is 2\.0"),
        (4, np.ones(6), ShapeError, "6 examples, which 4 virtual workers"),
        (2, np.ones((0, 3)), ShapeError, "0 examples"),
        (2, (np.ones(4), np.ones((6, 2))), ShapeError, r"lengths \[4, 6\]"),
        (2, np.float32(3), ShapeError, r"shapes \[\(\)\]"),
        (2, [], ShapeError, r"shapes \[\]"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(workers, batch, error, message):
    def work():
        connected().virtual_workers(workers, batch)

    with pytest.raises(error, match=r"\[virtual_workers\].*" + message):
        C.run_threads(work, 2)


def test_parameters_that_are_no_variables_are_refused():
    with pytest.raises(DtypeError, match="parameters has NdArray; pass Variables"):
        connected().virtual_workers(1, np.ones(2), parameters=[nn.NdArray((2,))])


def test_gradients_of_before_are_refused():
    comm = connected()
    get_parameter_or_create("w", (2,)).g = 1
    with pytest.raises(GraphError, match=r"1 gradients hold values already \(w \(2,\).*zero_grad"):
        next(comm.virtual_workers(1, np.ones(2)))


def test_two_open_loops_are_refused():
    comm = connected()
    outer = comm.virtual_workers(2, np.ones(2))
    next(outer)
    with pytest.raises(GraphError, match="still open"):
        next(comm.virtual_workers(2, np.ones(2)))
    outer.close()
    assert len(list(comm.virtual_workers(2, np.ones(2)))) == 2


@pytest.mark.parametrize("change", ["batch", "workers", "division", "parameters"])
def test_ranks_that_mean_different_steps_are_an_error_on_all(change):
    def work():
        comm = connected()
        other = comm.rank == 1
        get_parameter_or_create("w", (2 + (other and change == "parameters"),))
        batch = np.ones((8, 2), np.float32) + (other and change == "batch")
        workers = 4 if other and change == "workers" else 8
        for _part in comm.virtual_workers(
            workers, batch, division=not (other and change == "division")
        ):
            pass

    with pytest.raises(CommunicatorError, match="ranks disagree in array") as raised:
        C.run_threads(work, 2)
    assert len(raised.value.__notes__) == 2  # on the other rank as well


def test_an_effect_on_what_is_no_parameter_is_refused():
    comm = connected()
    counter = nn.Variable((1,))

    def work():
        with nn.auto_forward():
            for _part in comm.virtual_workers(2, np.ones(2)):
                F.assign(counter, counter + 1)

    with pytest.raises(GraphError, match=r"no parameters \(\(1,\).*need_grad"):
        work()
    assert counter.d[0] == 0
