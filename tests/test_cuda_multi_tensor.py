"""Updates and sums of many arrays on a GPU, against NumPy; and how many launches they take."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cases_solvers import RULES as SOLVERS

import distnn as nn
import distnn.solvers as S
from distnn.formula import Assignments
from distnn.solvers.solver import _DECAY, _SCALE

RULES = {
    **{name: make().rule for name, (make, _) in SOLVERS.items()},
    "Lamb's direction": S.Lamb.direction,
    "scale": _SCALE,
    "decay": _DECAY,
}
CHUNK = 8192
SIZES = [5, 1, 2 * CHUNK + 3, CHUNK, 300]


@pytest.fixture
def cupy(gpu):
    import cupy

    return cupy


@pytest.fixture
def launches(gpu, monkeypatch):
    """(name, blocks) of the kernels that are launched from now on, but for what sets numbers."""
    from distnn.cuda.kernels import Kernel

    found, launch = [], Kernel.__call__

    def counted(self, blocks, *args, **kwargs):
        if self.name != "set_words":
            found.append((self.name, blocks))
        launch(self, blocks, *args, **kwargs)

    monkeypatch.setattr(Kernel, "__call__", counted)
    return found


def run(rule, jobs):
    from distnn.cuda import multi_tensor

    multi_tensor.run(rule, jobs)


def jobs_for(rule, dtypes, sizes=SIZES):
    """Arrays in NumPy and numbers that differ from job to job."""
    rng = np.random.RandomState(0)
    return [
        (
            # n is RMSpropGraves' average of squares, no smaller than the square of the average.
            [
                (rng.uniform(0.1, 2, size) + 4 * (name == "n")).astype(dtype)
                for name, dtype in zip(rule.arrays, dtypes, strict=True)
            ],
            # AdaBelief's choice goes both ways.
            [i % 2 if n == "plain" else 0.3 + 0.01 * (i + k) for k, n in enumerate(rule.numbers)],
        )
        for i, size in enumerate(sizes)
    ]


def uploaded(cupy, jobs):
    return [([cupy.asarray(a) for a in arrays], numbers) for arrays, numbers in jobs]


def compare(found, wanted, check=np.testing.assert_array_equal):
    for (arrays, _), (others, _) in zip(found, wanted, strict=True):
        for a, b in zip(arrays, others, strict=True):
            check(a.get(), b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", RULES)
def test_rules_give_numpys_bits_in_one_launch(name, dtype, cupy, launches):
    rule = RULES[name]
    jobs = jobs_for(rule, [dtype] * len(rule.arrays))
    on_device = uploaded(cupy, jobs)
    for _ in range(2):
        run(rule, on_device)
        for arrays, numbers in jobs:
            rule.run(arrays, numbers)
    compare(on_device, jobs)
    blocks = sum(-(-size // CHUNK) for size in SIZES)
    assert [b for _, b in launches] == [blocks, blocks]


@pytest.mark.parametrize("name", RULES)
def test_halves_are_rounded_when_they_are_stored(name, cupy):
    rule = RULES[name]
    jobs = jobs_for(rule, [np.float16] * len(rule.arrays))
    on_device = uploaded(cupy, jobs)
    run(rule, on_device)
    wide = [
        ([a.astype(np.float64) for a in arrays], [float(np.float16(n)) for n in numbers])
        for arrays, numbers in jobs
    ]
    for arrays, numbers in wide:
        rule.run(arrays, numbers)

    def close(a, b):
        assert a.dtype == np.float16
        # One rounding of each value that is assigned; cancellation adds that of the state's.
        np.testing.assert_allclose(a, b, 2**-10, 2**-9)

    compare(on_device, wide, close)


def test_dtypes_may_differ_from_job_to_job_and_in_a_job(cupy, launches):
    rule = S.Sgd.rule
    jobs = [
        *jobs_for(rule, [np.float32, np.float32], [10, 20]),
        *jobs_for(rule, [np.float32, np.float16], [30]),
        *jobs_for(rule, [np.float64, np.float64], [40]),
    ]
    on_device = uploaded(cupy, jobs)
    run(rule, on_device)
    for (w, g), (lr,) in jobs:
        w -= w.dtype.type(lr) * g.astype(w.dtype)
    compare(on_device, jobs)
    assert len(launches) == 3


def test_arrays_that_begin_anywhere(cupy):
    rule = S.Momentum.rule
    memory = np.random.RandomState(1).uniform(1, 2, (3, 100)).astype(np.float32)
    on_device = cupy.asarray(memory)
    for start in range(1, 5):
        before = on_device.get()
        w, g, m = (on_device[i][start : start + 37] for i in range(3))
        run(rule, [([w, g, m], [0.1, 0.9])])
        wanted = before.copy()
        rule.run([row[start : start + 37] for row in wanted], [0.1, 0.9])
        np.testing.assert_array_equal(on_device.get(), wanted)


def test_numbers_that_change_are_seen_and_tables_are_kept(cupy):
    from distnn.cuda import job_tables

    rule = S.Sgd.rule
    w, g = cupy.zeros(4, np.float32), cupy.ones(4, np.float32)
    job_tables._table_on.cache_clear()
    for lr in (0.5, 0.25, 0.25):
        run(rule, [([w, g], [lr])])
    np.testing.assert_array_equal(w.get(), np.full(4, -1, np.float32))
    assert job_tables._table_on.cache_info().misses == 1


def test_numbers_are_computed_on_the_host_in_double(cupy):
    rule = Assignments("w = (1 - beta) * w", ("w",), ("beta",))
    w = cupy.ones(3, np.float32)
    run(rule, [([w], [1 - 1e-9])])
    np.testing.assert_array_equal(w.get(), np.full(3, 1 - (1 - 1e-9), np.float32))


def test_nothing_happens_where_an_error_was_found(cupy):
    from distnn.cuda import labels

    w, g = cupy.zeros(40, np.float32), cupy.ones(40, np.float32)
    word = labels.error_word()
    word.fill(1)
    try:
        run(S.Sgd.rule, [([w, g], [0.5])])
        assert not w.get().any()
    finally:
        word.fill(0)
    run(S.Sgd.rule, [([w, g], [0.5])])
    assert (w.get() == -0.5).all()


def test_no_jobs_and_empty_arrays(cupy, launches):
    empty = cupy.empty(0, np.float32)
    run(S.Sgd.rule, [])
    run(S.Sgd.rule, [([empty, empty], [0.5])])
    assert launches == []
    w, g = cupy.zeros(4, np.float32), cupy.ones(4, np.float32)
    run(S.Sgd.rule, [([empty, empty], [0.5]), ([w, g], [0.5])])
    assert (w.get() == -0.5).all()


# -- sums -----------------------------------------------------------------------------------------


def test_sums_of_squares(cupy, launches):
    from distnn.cuda.multi_tensor import sums_of_squares

    rng = np.random.RandomState(2)
    arrays = [rng.uniform(-2, 2, size).astype(np.float32) for size in (*SIZES, 0)]
    arrays += [rng.uniform(-2, 2, (3, 70)).astype("e"), rng.uniform(-2, 2, 9).astype("d")]
    found = sums_of_squares([cupy.asarray(a) for a in arrays])
    wanted = [math.fsum(float(x) ** 2 for x in a.flat) for a in arrays]
    np.testing.assert_allclose(found, wanted, 1e-14)
    assert [name for name, _ in launches] == ["chunk_sums", "job_sums"]
    assert launches[1][1] == len(arrays) - 1
    assert sums_of_squares([]) == []


def test_sums_do_not_depend_on_where_an_array_lies(cupy):
    from distnn.cuda.multi_tensor import sums_of_squares

    values = np.random.RandomState(3).uniform(-1, 1, CHUNK + 777)
    memory = cupy.empty(len(values) + 4, np.float64)
    found = set()
    for start in range(4):
        memory[start : start + len(values)] = cupy.asarray(values)
        found.update(sums_of_squares([memory[start : start + len(values)]]))
    assert len(found) == 1


def test_sums_read_views(cupy):
    from distnn.cuda.multi_tensor import sums_of_squares

    array = cupy.asarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    assert sums_of_squares([array[:, ::2], array.T]) == [
        sum(x * x for x in (0, 2, 4, 6, 8, 10)),
        sum(x * x for x in range(12)),
    ]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("at", [0, CHUNK - 1, CHUNK, 2 * CHUNK + 2])
def test_infinities_and_nans_are_found_anywhere(at, dtype, cupy, launches):
    from distnn.cuda.multi_tensor import any_of

    tests = ("isinf", "isnan", "not isfinite")
    largest = np.full(2 * CHUNK + 3, np.finfo(dtype).max, dtype)
    arrays = [cupy.zeros(3, dtype), cupy.asarray(largest)]
    assert [any_of(test, arrays) for test in tests] == [False, False, False]
    assert len(launches) == 6
    for value, wanted in (
        (np.inf, [True, False, True]),
        (-np.inf, [True, False, True]),
        (np.nan, [False, True, True]),
    ):
        largest[at] = value
        arrays = [cupy.zeros(3, dtype), cupy.asarray(largest)]
        assert [any_of(test, arrays) for test in tests] == wanted


# -- without waiting --------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [0.5, 20.0, 1e9])
def test_clipping_on_the_device_has_the_bits_of_clipping_on_the_host(cupy, norm):
    from distnn.backend import Backend
    from distnn.cuda import multi_tensor
    from distnn.cuda.backend import cuda_backend

    rng = np.random.RandomState(3)
    arrays = [rng.uniform(-2, 2, size).astype(char) for size in (*SIZES, 0) for char in "fd"]
    device = [cupy.asarray(a) for a in arrays]
    host = [cupy.asarray(a) for a in arrays]
    Backend.clip(cuda_backend("float", 0), _SCALE, host, norm)
    multi_tensor.clip(_SCALE, device, norm)
    for a, one, other in zip(arrays, device, host, strict=True):
        np.testing.assert_array_equal(one.get(), other.get())
        exact = np.linalg.norm(a.astype(np.float64))
        factor = norm / exact if exact > norm else 1
        np.testing.assert_allclose(one.get(), a * factor, 1e-6)


def test_a_step_waits_for_nothing(cupy):
    import gpu_emulator

    if not gpu_emulator.installed():
        pytest.skip("looks into the emulator")
    w = nn.parameter.get_parameter_or_create("w", (300, 3), need_grad=True)
    solver = S.Adam(0.1)
    solver.set_parameters(nn.get_parameters())
    for k in range(4):
        w.grad.fill(k + 1.0)
        w.grad._storage.materialize()
        gpu_emulator.record.clear()
        solver.weight_decay(1e-4 * k)
        solver.clip_grad_by_norm(1.0)
        solver.set_learning_rate(0.1 / (k + 1))
        solver.update(skip_if_nonfinite=True)
        record = gpu_emulator.record
        if k > 1:  # tables are there
            # What the host reads of the update before has come long ago.
            waits = [o for o in record.operations if o[0] == "synchronize"]
            assert [what for _, what, _ in waits] == ["event"]
            assert record.uploads == 0
    assert solver.skipped_updates() == 0


def test_words_that_the_host_sets(cupy):
    from distnn.cuda.words import Words

    for count in (1, 47, 48, 49, 200):
        words = Words(count)
        values = [2**64 - 1 - 3 * i for i in range(count)]
        words.set(values)
        assert words.array.get().tolist() == values
