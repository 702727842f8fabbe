"""Dynamic loss scaling: when the scale changes, what a failed attempt leaves alone, over ranks."""

from __future__ import annotations

import numpy as np
import pytest
from ranks import MPI, connected, on_ranks

import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S
from distnn.checkpoint import resume, save
from distnn.errors import ArgumentError, SolverError
from distnn.experimental.mixed_precision_training import DynamicLossScalingUpdater

RATE, MOMENTUM = 0.125, 0.5
HUGE = 1000.0  # with a scale of 8 the gradient of sum(x w) + ... is beyond 65504


class Training:
    """loss = sum(x w)^2 / 2 with w (3, 1), by momentum SGD on given batches (4, 3)."""

    def __init__(self, extension, batches, type_config="half", dynamic=False, **options):
        self.context = nn.Context([f"{extension}:{type_config}"])
        self.batches = iter(batches)
        self.x = nn.Variable((4, 3))
        self.seen = []  # (parameter, momentum, t) before each batch
        start = np.array([[0.5], [-1.0], [2.0]])
        with nn.context_scope(self.context):
            loss = self.build(start)
        (self.w,) = nn.get_parameters().values()
        self.solver = S.Momentum(RATE, MOMENTUM)
        self.solver.set_parameters(nn.get_parameters())
        self.updater = DynamicLossScalingUpdater(
            self.solver, self.rebuilt if dynamic else loss, self.feed, **options
        )

    def build(self, start=None):
        return F.sum(PF.affine(self.x, 1, with_bias=False, w_init=start) ** 2) / 2

    def rebuilt(self):
        with nn.auto_forward():
            return self.build()

    def state(self):
        state = self.solver.get_states()["affine/W"]
        return self.w.d.tobytes(), state.pstate["m"].d.tobytes(), state.t

    def feed(self):
        self.seen.append(self.state())
        self.x.d = next(self.batches)

    def update(self):
        with nn.context_scope(self.context):
            return self.updater.update()


def batches(count, seed=0):
    """Multiples of 1/8, so that half precision rounds nothing in products with a scale."""
    rng = np.random.RandomState(seed)
    return [rng.randint(-8, 9, (4, 3)) / 8 for _ in range(count)]


def by_hand(steps, decay=0.0):
    """Momentum SGD in float64; each step is a list of batches whose gradients are added."""
    w, m = np.array([[0.5], [-1.0], [2.0]]), np.zeros((3, 1))
    for step in steps:
        g = sum(x.T @ (x @ w) for x in step) + decay * w
        m = MOMENTUM * m + RATE * g
        w = w - m
    return w


def huge():
    return np.full((4, 3), HUGE)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_scaled_training_is_training(extension, dynamic):
    data = batches(6)
    training = Training(extension, data, "float", dynamic, scale=2.0**10, N=2)
    assert [training.update() for _ in range(6)] == [True] * 6
    assert training.updater.scale == 2.0**13
    np.testing.assert_allclose(training.w.d, by_hand([[x] for x in data]), rtol=2e-6)


def test_scales_that_are_powers_of_two_change_no_bit(extension):
    first = Training(extension, batches(6), "float", scale=1.0, N=100)
    results = [first.update() and first.state() for _ in range(6)]
    nn.clear_parameters()
    second = Training(extension, batches(6), "float", scale=2.0**12, N=2)
    assert [second.update() and second.state() for _ in range(6)] == results


def test_gradients_below_the_range_of_half_precision_survive(extension):
    tiny = np.full((4, 3), 2.0**-14)

    def momentum(scale):
        nn.clear_parameters()
        training = Training(extension, [tiny], scale=scale)
        training.update()
        return np.abs(training.solver.get_states()["affine/W"].pstate["m"].d)

    gradient = 4 * 2.0**-28 * 1.5  # 4 x^2 sum(w); float16 ends at 2^-24
    assert np.all(momentum(1.0) == 0)
    np.testing.assert_allclose(momentum(2.0**10), RATE * gradient, rtol=1e-3)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_an_overflow_halves_the_scale_and_leaves_everything_else_alone(extension, dynamic):
    good = batches(4)
    data = [good[0], good[1], huge(), good[2], good[3]]
    training = Training(extension, data, "half", dynamic, N=3)
    assert training.update()
    assert training.update()
    before = training.state()
    assert training.updater.scale == 8
    assert training.update()  # huge, then the next
    assert training.seen[2] == training.seen[3] == before
    assert training.state() != before
    assert training.updater.scale == 4
    assert training.state()[2] == 3
    np.testing.assert_allclose(training.w.d, by_hand([[x] for x in good[:3]]), rtol=2e-2, atol=2e-2)


def test_without_retry_the_step_is_skipped(extension):
    training = Training(extension, [batches(1)[0], huge(), batches(1, 1)[0]], retry=False)
    assert training.update() is True
    before = training.state()
    assert training.update() is False
    assert training.state() == before
    assert training.updater.scale == 4
    assert training.update() is True
    assert training.state() != before


def test_the_scale_grows_after_good_steps_in_a_row(extension):
    good = [x / 64 for x in batches(9)]
    data = [*good[:2], huge(), *good[2:]]
    training = Training(extension, data, scale=16.0, scaling_factor=4.0, N=3, retry=False)
    found = []
    for _ in data:
        training.update()
        found.append(training.updater.scale)
    assert found == [16, 16, 4, 4, 4, 16, 16, 16, 64, 64]


def test_a_scale_beyond_half_precision_comes_back(extension):
    """The gradient that backward starts from, the scale in the dtype of the loss, is infinite."""
    training = Training(extension, [x / 64 for x in batches(4)], scale=2.0**17)
    assert training.update()
    assert training.updater.scale == 2.0**15


def test_gradients_are_accumulated_and_decay_sees_them_without_scale(extension):
    data = batches(6)
    options = {"scale": 64.0, "accum_grad": 3, "weight_decay": 0.25}
    training = Training(extension, data, "float", **options)
    training.update()
    training.update()
    expected = by_hand([data[:3], data[3:]], decay=0.25)
    np.testing.assert_allclose(training.w.d, expected, rtol=1e-5)


def test_nan_that_no_scale_mends_is_an_error(extension):
    training = Training(extension, [np.full((4, 3), np.nan)] * 200)
    before = training.state()
    with pytest.raises(SolverError, match=r"101 attempts in a row .* with scale .*e-30"):
        training.update()
    assert training.state() == before
    nn.clear_parameters()
    # Failures that are not in a row are none of it.
    data = [x for good in batches(150) for x in (huge(), good / 64)]
    training = Training(extension, data, N=1)
    assert [training.update() for _ in range(150)] == [True] * 150
    nn.clear_parameters()
    training = Training(extension, [np.full((4, 3), np.nan)] * 200, retry=False)
    assert [training.update() for _ in range(100)] == [False] * 100
    with pytest.raises(SolverError, match="101 attempts"):
        training.update()


def test_a_checkpoint_keeps_the_scale(extension, tmp_path):
    path = str(tmp_path / "last.safetensors")
    data = [x / 64 for x in batches(6)]

    def scales(training, steps):
        return [training.update() and training.updater.scale for _ in range(steps)]

    first = Training(extension, [data[0], huge(), *data[1:]], N=3)
    scales(first, 3)
    others = {"loss scaling": first.updater}
    save(path, first.solver, others=others)
    expected = scales(first, 3)
    assert expected == [8, 8, 8]
    nn.clear_parameters()
    second = Training(extension, data[3:], N=3)
    resume(path, second.solver, others={"loss scaling": second.updater})
    assert second.updater.scale == 4
    assert scales(second, 3) == expected
    assert second.state() == first.state()


@pytest.mark.parametrize("exchange", ["grads", "callback", "data_parallel", "decision alone"])
@pytest.mark.parametrize("transport", ["threads 2", "threads 3", MPI])
def test_ranks_decide_alike_where_one_overflows(extension, transport, exchange):
    def work():
        comm = connected()
        mine = batches(4, seed=comm.rank)
        if comm.rank == 1:
            mine.insert(2, huge())  # rank 1 alone overflows in the third attempt
        else:
            mine.insert(2, batches(1, seed=99)[0])
        training = Training(extension, [x / 16 if x[0, 0] != HUGE else x for x in mine], N=2)
        updater = training.updater
        if exchange != "data_parallel":
            updater.comm = comm
        gradients = [training.w.grad]
        if exchange == "grads":
            updater.grads, updater.communicator_callbacks = gradients, []
        elif exchange == "callback":
            updater.communicator_callbacks = comm.all_reduce_callback(gradients)
        elif exchange == "data_parallel":
            assert nn.data_parallel(training.solver) is comm
        states = []
        while training.state()[2] < 4:
            training.update()
            states.append((updater.scale, training.state()[2]))
        assert training.seen[2] == training.seen[3]
        return states, training.w.d.copy()

    results = on_ranks(transport, work)
    for states, _ in results:
        assert states == [(8, 1), (16, 2), (8, 3), (16, 4)]
    if exchange != "decision alone":
        for _, w in results[1:]:
            assert np.array_equal(w, results[0][1])


@pytest.mark.parametrize("transport", ["threads 2", MPI])
def test_infinities_of_opposite_sign_are_seen_by_all_ranks(extension, transport):
    """inf - inf is NaN, in the communication thread."""

    def work():
        comm = connected()
        sign = 1 if comm.rank % 2 else -1
        training = Training(extension, [*batches(1), huge(), *batches(1)])
        training.updater.comm, training.updater.grads = comm, [training.w.grad]
        with nn.context_scope(training.context):
            training.updater.loss = sign * training.build()
        training.update()
        training.update()
        return training.updater.scale, training.state()[2]

    assert set(on_ranks(transport, work)) == {(4, 2)}


@pytest.mark.parametrize("exchange", ["grads", "callback", "data_parallel"])
@pytest.mark.parametrize("transport", ["threads 2", MPI])
def test_accumulated_gradients_are_summed_over_ranks_once(extension, transport, exchange):
    def work():
        comm = connected()
        data = [batches(4, seed=rank) for rank in range(comm.size)]
        training = Training(extension, data[comm.rank], "float", scale=32.0, accum_grad=2)
        updater, gradients = training.updater, [training.w.grad]
        if exchange == "callback":
            updater.communicator_callbacks = comm.all_reduce_callback(gradients)
        else:
            nn.data_parallel(training.solver)
        if exchange == "grads":  # they are the updater's to sum then, not data_parallel's
            training.updater = DynamicLossScalingUpdater(
                training.solver, updater.loss, training.feed, 32.0, 2.0, accum_grad=2,
                comm=comm, grads=gradients,
            )  # fmt: skip
        training.update()
        training.update()
        ranks = comm.size if exchange == "data_parallel" else 1  # it averages
        w, m = np.array([[0.5], [-1.0], [2.0]]), np.zeros((3, 1))
        for step in (0, 2):
            g = sum(x.T @ (x @ w) for mine in data for x in mine[step : step + 2]) / ranks
            m = MOMENTUM * m + RATE * g
            w = w - m
        np.testing.assert_allclose(training.w.d, w, rtol=1e-5)

    on_ranks(transport, work)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": 3.0}, r"loss is 3.0; pass a Variable, or a function"),
        ({"data_feeder": None}, r"data_feeder is None; pass a function"),
        ({"scale": 0.0}, r"scale is 0.0; pass a positive number"),
        ({"scale": np.inf}, r"scale is inf; pass a positive number"),
        ({"scaling_factor": 1.0}, r"scaling_factor is 1.0; pass a number above 1"),
        ({"N": 0}, r"N is 0; pass an int of 1 or more"),
        ({"N": 2.5}, r"N is 2.5; pass an int of 1 or more"),
        ({"accum_grad": 0}, r"accum_grad is 0; pass an int of 1 or more"),
        ({"grads": [None, None]}, r"comm is None; pass the communicator that sums the 2 grads"),
        (
            {"grads": [None], "comm": object(), "communicator_callbacks": object()},
            r"grads is '1 arrays'; pass no grads, since communicator_callbacks",
        ),
    ],
)
def test_wrong_arguments_are_explained(options, message):
    with pytest.raises(ArgumentError, match=r"\[DynamicLossScalingUpdater\] " + message):
        DynamicLossScalingUpdater(S.Sgd(), options.pop("loss", nn.Variable()), **options)
