"""Giving all ranks the state of one, and noticing where they differ."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from launching import needs_mpi
from ranks import TRANSPORTS, connected, on_ranks
from test_mpi_jobs import run

import distnn as nn
import distnn.communicators as C
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S
from distnn.context import current_backend
from distnn.errors import ArgumentError, CommunicatorError

everywhere = pytest.mark.parametrize("transport", TRANSPORTS)
several = pytest.mark.parametrize("transport", TRANSPORTS[1:])


def trained(rank, steps=2, width=5):
    """A solver whose network was trained on data of this rank alone, more steps on later ranks."""
    x = nn.Variable.from_numpy_array(np.random.RandomState(rank).randn(6, 4).astype(np.float32))
    h = F.tanh(PF.batch_normalization(PF.affine(x, width, name="1")))
    # The second is large enough to travel alone; the third lies elsewhere than the others.
    loss = F.mean(PF.affine(PF.affine(h, 5000, name="large"), 2, name="3") ** 2)
    PF.affine(nn.Variable((1, 2)), 2, name="unused")
    solver = S.Adam(0.01)
    solver.set_parameters(nn.get_parameters())
    for _ in range(steps + rank):
        loss.forward()
        solver.zero_grad()
        loss.backward()
        solver.update()
    return solver


def values():
    return {k: p.d.copy() for k, p in nn.get_parameters(grad_only=False).items()}


def states(solver):
    found = {}
    for key, state in solver.get_states().items():
        found[key, "t"] = state.t
        found.update({(key, name): v.d.copy() for name, v in state.pstate.items()})
    return found


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def of_rank(rank):
    """What `trained` leaves on a rank, computed in a World of its own."""

    def work():
        solver = trained(rank)
        return values(), states(solver)

    (found,) = C.run_threads(work, 1)
    return found


@everywhere
@pytest.mark.parametrize("with_solver", [False, True])
def test_all_ranks_get_the_state_of_one(transport, with_solver):
    def work():
        comm = connected()
        src = comm.size - 1
        solver = trained(comm.rank)
        own = states(solver)
        views = {k: p.d for k, p in nn.get_parameters(grad_only=False).items()}
        comm.bcast_parameters(src, solver=solver if with_solver else None)
        expected = of_rank(src)
        assert equal(values(), expected[0])
        assert equal(states(solver), expected[1] if with_solver else own)
        if current_backend().name == "cpu":
            assert equal(views, expected[0])  # addresses of parameters never change

    on_ranks(transport, work)
    assert not equal(of_rank(0)[0], of_rank(1)[0])


@everywhere
def test_training_goes_on_equally_after_it(transport):
    def work():
        comm = connected()
        solver = trained(comm.rank)
        comm.bcast_parameters(solver=[solver])
        for p in nn.get_parameters().values():
            p.g = 0.5
        solver.update()
        assert comm.check_consistency(solver=solver)
        comm.barrier()

    on_ranks(transport, work)


@several
def test_other_networks_are_named_on_all_ranks(transport):
    def work():
        comm = connected()
        trained(0, width=5 if comm.rank else 6)
        with pytest.raises(CommunicatorError, match=r"1/affine/W \(4, 6\) float32 on rank 0; 1/af"):
            comm.bcast_parameters()
        comm.barrier()

    on_ranks(transport, work)


@several
def test_a_rank_without_solver_or_with_frozen_parameters_is_named(transport):
    def work():
        comm = connected()
        solver = trained(0)
        with pytest.raises(CommunicatorError, match=r"nothing on rank 0; state mean of 1/aff"):
            comm.bcast_parameters(solver=solver if comm.rank else None)
        if comm.rank:
            nn.get_parameters()["3/affine/b"].need_grad = False
        with pytest.raises(CommunicatorError, match=r"3/affine/b \(2,\) float32 \(need_grad=Fal"):
            comm.bcast_parameters()

    on_ranks(transport, work)


@everywhere
def test_equal_ranks_pass(transport):
    def work():
        comm = connected()
        solver = trained(0)
        assert comm.check_consistency(solver=solver) is True

    on_ranks(transport, work)


@several
@pytest.mark.parametrize("name", ["large/affine/W", "bn/var", "1/affine/b"])
def test_one_bit_on_one_rank_is_noticed_on_all(transport, name):
    def work():
        comm = connected()
        trained(0)
        if comm.rank == 1:
            parameter = nn.get_parameters(grad_only=False)[name]
            parameter.d.reshape(-1).view(np.uint32)[-1] ^= 1
        match = rf"in the values of {name}: checksum (\w+) on rank 0.*; (?!\1)\w+ on rank 1; comm"
        with pytest.raises(CommunicatorError, match=match):
            comm.check_consistency()

    on_ranks(transport, work)


@several
def test_states_of_solvers_are_compared_too(transport):
    def work():
        comm = connected()
        solver = trained(0)
        if comm.rank == 1:
            solver._parameters["3/affine/W"].states["var"][0] += 1
        comm.check_consistency()
        match = r"state var of 3/affine/W in solver \(Adam\): checksum"
        with pytest.raises(CommunicatorError, match=match):
            comm.check_consistency(solver=solver)

    on_ranks(transport, work)


@several
def test_step_counts_and_learning_rates_are_compared_too(transport):
    def work():
        comm = connected()
        solver = trained(0)
        if comm.rank == 1:
            solver._parameters["3/affine/b"].t += 1
        with pytest.raises(CommunicatorError, match="step counts of solvers"):
            comm.check_consistency(solver=solver)
        solver = trained(0)
        solver.set_learning_rate(0.5 if comm.rank else 0.25)
        with pytest.raises(CommunicatorError, match=r"learning_rate=0\.25.* on rank 0; Adam wi"):
            comm.check_consistency(solver=solver)

    on_ranks(transport, work)


@several
def test_every_nth_call_does_the_work(transport):
    def work():
        comm = connected()
        PF.affine(nn.Variable((2, 3)), 4)
        if comm.rank == 1:
            nn.get_parameters()["affine/b"].d += 1
        before = comm._groups["world"].count.number
        assert [comm.check_consistency(every=3) for _ in range(2)] == [False, False]
        assert comm._groups["world"].count.number == before
        with pytest.raises(CommunicatorError, match="affine/b"):
            comm.check_consistency(every=3)

    on_ranks(transport, work)


DIVERGES = """
    import sys
    import distnn as nn, distnn.communicators as C, distnn.parametric_functions as PF

    comm = C.MultiProcessDataParallelCommunicator()
    comm.init()
    PF.affine(nn.Variable((2, 3)), 4)
    if comm.rank == 1:
        nn.get_parameters()["affine/W"].d += 1e-3
    try:
        comm.check_consistency()
    except C.communicator.CommunicatorError as error:
        print(f"{error}", file=sys.stderr, flush=True)
    comm.bcast_parameters(1)
    comm.check_consistency()
    print(f"rank {comm.rank} agrees", flush=True)
"""


@needs_mpi
def test_in_a_real_job_every_rank_says_what_differs_and_goes_on(tmp_path):
    from distnn.launcher.mpi import find_mpirun, mpi_of_mpi4py

    mpirun = find_mpirun(mpi_of_mpi4py())
    options = ["-n", "2", "--allow-run-as-root", "--map-by", "slot:OVERSUBSCRIBE"]
    finished, _ = run(tmp_path, DIVERGES, [mpirun, *options])
    assert finished.returncode == 0, finished.stderr
    for rank in range(2):
        text = f"rank {rank}: [check_consistency] ranks disagree in the values of affine/W"
        assert text in finished.stderr
        assert f"rank {rank} agrees" in finished.stdout


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda c: c.check_consistency(every=0), "every is 0; pass an int"),
        (lambda c: c.check_consistency(solver="Adam"), "solver is str; pass a solver"),
        (lambda c: c.bcast_parameters(3), r"\[bcast_parameters\] src is 3; group 'world' has"),
    ],
)
def test_bad_arguments_are_named(call, match):
    with pytest.raises(ArgumentError, match=match):
        call(connected())


@pytest.mark.parametrize("name", ["bcast_parameters", "check_consistency"])
def test_the_examples_in_the_documentation_run(name):
    method = getattr(C.MultiProcessDataParallelCommunicator, name)
    (example,) = doctest.DocTestFinder().find(method, name, globs={})
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
