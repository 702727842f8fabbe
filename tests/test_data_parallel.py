"""Training on 1, 2 and 4 ranks with the same global batch agrees."""

from __future__ import annotations

import numpy as np
import pytest
from ranks import MPI, ON_GPUS, connected, on_ranks

import distnn as nn
import distnn.communicators as C
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S

BATCH = 16


def network(x):
    h = F.tanh(PF.convolution(x, 6, (3, 3), pad=(1, 1), name="1"))
    h = F.max_pooling(F.relu(PF.convolution(h, 8, (3, 3), name="2")), (2, 2))
    return PF.affine(F.tanh(PF.affine(h, 20, name="3")), 10, name="4")


def train(steps, type_config, solver, exchange, dynamic=False):
    """Losses (of the global batch) and first gradients, on this rank."""
    rng = np.random.RandomState(0)
    images = rng.uniform(-1, 1, (steps, BATCH, 1, 8, 8))
    labels = rng.randint(0, 10, (steps, BATCH, 1))
    comm = connected()
    share = BATCH // comm.size
    mine = slice(comm.rank * share, (comm.rank + 1) * share)
    losses, first = [], None
    context = nn.get_current_context()
    name = context.backend[0].partition(":")[0]
    with nn.context_scope(nn.Context([f"{name}:{type_config}"], device_id=context.device_id)):
        x, t = nn.Variable((share, 1, 8, 8)), nn.Variable((share, 1))
        loss = F.mean(F.softmax_cross_entropy(network(x), t))
        optimizer = solver()
        optimizer.set_parameters(nn.get_parameters())
        grads = [p.grad for p in nn.get_parameters().values()]
        callback = None
        if exchange == "callback":
            callback = comm.all_reduce_callback(grads, 500, division=True)
        elif exchange == "data_parallel":
            assert nn.data_parallel(optimizer, 500) is comm
        for step in range(steps):
            x.d, t.d = images[step, mine], labels[step, mine]
            if dynamic:
                with nn.auto_forward():
                    loss = F.mean(F.softmax_cross_entropy(network(x), t))
            else:
                loss.forward(clear_no_need_grad=True)
            optimizer.zero_grad()
            loss.backward(clear_buffer=True, communicator_callbacks=callback)
            if exchange == "all_reduce":
                comm.all_reduce(grads, division=True)
            if first is None:
                first = [g.get_data("r").copy() for g in grads]
            optimizer.update()
            total = nn.NdArray.from_numpy_array(loss.d.astype(np.float64))
            comm.all_reduce(total, division=True)
            losses.append(float(total.data))
    return losses, first


# Batches can be cut into 2 or 4.
several = pytest.mark.parametrize("transport", ["threads 2", "threads 4", MPI, *ON_GPUS[::2]])
exchanges = pytest.mark.parametrize("exchange", ["callback", "all_reduce", "data_parallel"])


def compared(transport, alone, steps, type_config, solver, exchange, check):
    def work():
        check(alone, train(steps, type_config, solver, exchange))

    on_ranks(transport, work)


def on_one_rank(*arguments):
    (found,) = C.run_threads(train, 1, *arguments)
    return found


@several
@exchanges
@pytest.mark.parametrize(
    "solver", [lambda: S.Momentum(0.1), lambda: S.Adam(0.01)], ids=["Momentum", "Adam"]
)
def test_in_float64_the_losses_of_20_steps_agree_to_1e_9(transport, exchange, solver):
    alone = on_one_rank(20, "double", solver, exchange)

    def check(expected, found):
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-9)

    compared(transport, alone, 20, "double", solver, exchange, check)
    assert alone[0][-1] != alone[0][0]


@several
@exchanges
def test_in_float32_first_gradients_and_10_losses_agree(transport, exchange):
    def solver():
        return S.Momentum(0.1)

    alone = on_one_rank(10, "float", solver, exchange)

    def check(expected, found):
        for e, g in zip(expected[1], found[1], strict=True):
            assert np.linalg.norm(g - e) <= 1e-5 * np.linalg.norm(e)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-3)

    compared(transport, alone, 10, "float", solver, exchange, check)


@several
def test_a_dynamic_graph_exchanges_the_same_bits_as_a_static_one(transport):
    def work():
        found = []
        for dynamic in (False, True):
            nn.clear_parameters()
            nn.seed(313)
            found.append(train(3, "float", lambda: S.Adam(0.01), "callback", dynamic))
        assert found[0][0] == found[1][0]
        for a, b in zip(found[0][1], found[1][1], strict=True):
            assert np.array_equal(a, b)

    on_ranks(transport, work)


@several
def test_all_ranks_hold_the_same_bits_after_training(transport):
    def work():
        comm_losses, _ = train(5, "float", lambda: S.Adam(0.01), "callback")
        comm = connected()
        mine = np.concatenate([p.d.reshape(-1) for p in nn.get_parameters().values()])
        everybodys = [nn.NdArray((mine.size,)) for _ in range(comm.size)]
        comm.all_gather(nn.NdArray.from_numpy_array(mine), everybodys)
        for other in everybodys:
            assert np.array_equal(other.data, mine)
        assert comm_losses[-1] < comm_losses[0] * 2

    on_ranks(transport, work)


def test_data_parallel_takes_part_in_backward_of_two_solvers_that_change():
    def work():
        comm = None
        rng = np.random.RandomState(5)
        with nn.auto_forward():
            solvers = [S.Sgd(0.1), S.Sgd(0.1)]
            for i, solver in enumerate(solvers):
                with nn.parameter_scope(f"net{i}"):
                    PF.affine(nn.Variable((2, 3)), 2)
                    solver.set_parameters(nn.get_parameters())
                comm = nn.data_parallel(solver)
            for step in range(3):
                with nn.parameter_scope("net0"):
                    # A layer more from the second step on.
                    x = nn.Variable.from_numpy_array(rng.randn(2, 2, 3)[comm.rank])
                    h = PF.affine(x, 2)
                    if step > 0:
                        h = PF.affine(h, 2, name="late")
                    solvers[0].set_parameters(nn.get_parameters(), reset=False, retain_state=True)
                solvers[0].zero_grad()
                F.mean(h * h).backward()
                solvers[0].update()
        return {k: p.d.copy() for k, p in nn.get_parameters().items()}

    first, second = C.run_threads(work, 2)
    assert first.keys() == second.keys()
    assert "net0/late/affine/W" in first
    for k, p in first.items():
        np.testing.assert_array_equal(p, second[k])
