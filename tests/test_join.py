"""Ranks with different numbers of batches: the others' steps go on, and all ranks stay equal."""

from __future__ import annotations

import numpy as np
import pytest
from ranks import MPI, ON_GPUS, connected, on_ranks

import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S
from distnn.errors import ArgumentError, CommunicatorError

several = pytest.mark.parametrize(
    "transport", ["threads 2", "threads 3", "threads 4", MPI, *ON_GPUS]
)
LENGTHS = [3, 5, 2, 4]  # batches, by rank
SHAPE = (4, 3)
RATE, MOMENTUM, DECAY = 0.1, 0.9, 0.01


def batch(rank, step):
    return np.random.RandomState(50 * rank + step).uniform(-1, 1, SHAPE).astype(np.float32)


def by_hand(size, lengths, divide_by, w):
    """Momentum SGD with decay on sum((x w)^2) / 2, whose gradient is x^T x w; in float64."""
    w = w.astype(np.float64)
    velocity = np.zeros_like(w)
    for step in range(max(lengths[:size])):
        active = [rank for rank in range(size) if step < lengths[rank]]
        gradient = np.zeros_like(w)
        for rank in active:
            x = batch(rank, step).astype(np.float64)
            gradient += x.T @ x @ w
        gradient /= len(active) if divide_by == "active" else size
        gradient += DECAY * w
        velocity = MOMENTUM * velocity - RATE * gradient
        w = w + velocity
    return w


class Training:
    """sum((x w)^2) / 2 by momentum SGD."""

    def __init__(self, dynamic=False):
        nn.seed(1)
        self.dynamic = dynamic
        self.x = nn.Variable(SHAPE)
        self.loss = self.build()
        self.comm = connected()
        self.solver = S.Momentum(RATE, MOMENTUM)
        self.solver.set_parameters(nn.get_parameters())
        self.parameter = nn.get_parameters()["affine/W"]
        self.first = self.parameter.d.copy()
        self.callback = self.comm.all_reduce_callback([self.parameter.grad], 2, division=True)

    def build(self):
        return F.sum(PF.affine(self.x, 2, with_bias=False) ** 2) / 2

    def update(self):
        self.solver.weight_decay(DECAY)
        self.solver.update()

    def backward(self, x):
        self.x.d = x
        if self.dynamic:
            with nn.auto_forward():
                self.loss = self.build()
        else:
            self.loss.forward()
        self.solver.zero_grad()
        self.loss.backward(communicator_callbacks=self.callback)

    def run(self, lengths, divide_by="active"):
        batches = (batch(self.comm.rank, step) for step in range(lengths[self.comm.rank]))
        steps = 0
        for x in self.comm.join(batches, {self.callback: self.update}, divide_by):
            self.backward(x)
            self.update()
            steps += 1
        assert steps == lengths[self.comm.rank]


@several
@pytest.mark.parametrize("divide_by", ["active", "initial"])
@pytest.mark.parametrize("lengths", [LENGTHS, [2, 0, 3, 0], [2, 2, 2, 2], [0, 0, 0, 0]], ids=str)
def test_training_equals_numpy_and_ends_equal_on_all_ranks(transport, divide_by, lengths):
    def work():
        training = Training()
        comm = training.comm
        training.run(lengths, divide_by)
        size = comm.size
        expected = (
            by_hand(size, lengths, divide_by, training.first)
            if max(lengths[:size])
            else (training.first)
        )
        found = training.parameter.d
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        everybodys = [nn.NdArray(found.shape) for _ in range(size)]
        comm.all_gather(training.parameter.data, everybodys)  # the communicator still works
        assert all(np.array_equal(other.data, found) for other in everybodys)
        assert training.solver.get_states()["affine/W"].t == max(lengths[:size])

    on_ranks(transport, work)


@several
def test_a_second_epoch_goes_on_where_the_first_one_ended(transport):
    """The states of the solver, too, are those of a rank that had all the data."""

    def work():
        training = Training(dynamic=True)
        size = training.comm.size
        training.run(LENGTHS)
        training.run(LENGTHS)
        w, velocity = training.first.astype(np.float64), np.zeros((3, 2))
        for step in [*range(max(LENGTHS[:size]))] * 2:
            xs = [batch(r, step).astype(np.float64) for r in range(size) if step < LENGTHS[r]]
            gradient = sum(x.T @ x @ w for x in xs) / len(xs) + DECAY * w
            velocity = MOMENTUM * velocity - RATE * gradient
            w = w + velocity
        np.testing.assert_allclose(training.parameter.d, w, rtol=1e-4, atol=1e-6)

    on_ranks(transport, work)


@several
def test_parameters_that_only_some_ranks_use_and_two_callbacks(transport):
    """Each step exchanges two parts of the network; the second is used on even steps only."""
    lengths = [1, 4, 2, 3]

    def work():
        comm = connected()
        x = nn.Variable((1, 2))
        x.d = comm.rank + 1
        losses = [F.sum(PF.affine(x, 1, name=name, with_bias=False)) for name in "ab"]
        parameters = list(nn.get_parameters().values())
        grads = [p.grad for p in parameters]
        callbacks = [comm.all_reduce_callback(grads, 1), comm.all_reduce_callback(grads[1:], 1)]
        for loss in losses:
            loss.forward()
        seen = [[], []]

        def note(which):
            return lambda: seen[which].append([float(g.data.ravel()[0]) for g in grads])

        notes = [note(0), note(1)]
        for step in comm.join(range(lengths[comm.rank]), dict(zip(callbacks, notes, strict=True))):
            for g in grads:
                g.zero()
            losses[0].backward(communicator_callbacks=callbacks[0])
            notes[0]()
            if step % 2 == 0:
                losses[1].backward(communicator_callbacks=callbacks[1])
                notes[1]()
        steps = range(max(lengths[: comm.size]))
        sums = [sum(r + 1 for r in range(comm.size) if s < lengths[r]) for s in steps]
        assert seen[0] == [[s, 0] for s in sums]
        assert [found[1] for found in seen[1]] == sums[::2]

    on_ranks(transport, work)


@several
@pytest.mark.parametrize(
    ("what", "match"),
    [
        (lambda t: t.comm.barrier(), "barrier"),
        (lambda t: t.comm.all_reduce(t.parameter.grad), "all_reduce"),
    ],
)
def test_a_collective_that_a_rank_without_data_does_not_know_raises_on_all(transport, what, match):
    def work():
        training = Training()
        comm = training.comm

        def loop():
            for _ in comm.join(range(2 if comm.rank == 0 else 0), {training.callback: id}):
                what(training)

        others = ", ".join(map(str, range(1, comm.size)))
        with pytest.raises(CommunicatorError, match=rf"\[{match}\] rank {others} ran out of data"):
            loop()
        comm.barrier()  # nobody hangs, nobody is dead

    on_ranks(transport, work)


@several
def test_ranks_with_data_that_disagree_are_named_without_those_that_have_none(transport):
    def work():
        comm = connected()
        if comm.size < 3:
            return
        a, b = nn.NdArray((2,)), nn.NdArray((3,))

        def loop():
            for _ in comm.join(range(0 if comm.rank == 2 else 1), {}):
                comm.all_reduce([b if comm.rank == 1 else a])

        with pytest.raises(CommunicatorError, match=r"array 0: \(2,\) float32 on rank 0.*; \(3,\)"):
            loop()

    on_ranks(transport, work)


@several
def test_all_ranks_join_with_the_same_arguments(transport):
    def work():
        training = Training()
        comm = training.comm
        divide_by = "initial" if comm.rank == 1 else "active"
        with pytest.raises(CommunicatorError, match="divide_by active on rank 0"):
            next(comm.join([1], {training.callback: training.update}, divide_by))

    on_ranks(transport, work)


def test_the_divisor_must_be_one_of_two():
    with pytest.raises(ArgumentError, match="divide_by is 'mean'"):
        connected().join([], {}, "mean")
