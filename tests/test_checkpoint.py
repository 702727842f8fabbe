"""Interrupted training goes on with the same bits; files that are not whole are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ranks import MPI, ON_GPUS, TRANSPORTS, connected, on_ranks

import distnn as nn
import distnn.checkpoint
import distnn.communicators as C
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S
from distnn.checkpoint import resume, save
from distnn.context import World, current_world, world_scope
from distnn.data import data_iterator_simple
from distnn.errors import ArgumentError, CheckpointError

everywhere = pytest.mark.parametrize("transport", TRANSPORTS)
several = pytest.mark.parametrize("transport", ["threads 2", "threads 3", MPI, *ON_GPUS])


@pytest.fixture
def folder(tmp_path):
    """A folder that all ranks know."""
    if "mpi4py.MPI" not in sys.modules:
        return tmp_path
    from mpi4py import MPI as mpi

    return Path(mpi.COMM_WORLD.bcast(str(tmp_path)))


class Training:
    """Dropout, batch normalization, shuffled data of this rank, a communicator."""

    def __init__(self, comm, make_solver, dynamic=False, width=6, compression=None):
        self.compression = compression
        self.comm, self.dynamic, self.width = comm, dynamic, width
        self.values = np.random.RandomState(5).randn(30, 4).astype(np.float32)
        self.data = data_iterator_simple(
            lambda i: (self.values[i],), 30, 4, shuffle=True, use_thread=True
        )
        if comm.size > 1:
            self.data = self.data.slice(num_of_slices=comm.size, slice_pos=comm.rank)
        self.x = nn.Variable((4, 4))
        self.loss = self.network()
        self.solver = make_solver()
        self.solver.set_parameters(nn.get_parameters())
        self.grads = [p.grad for p in nn.get_parameters().values()]

    def network(self):
        h = F.dropout(F.tanh(PF.batch_normalization(PF.affine(self.x, self.width, name="1"))), 0.3)
        return F.mean((PF.affine(h, 4, name="2") - self.x) ** 2)

    def run(self, steps):
        losses = []
        for _ in range(steps):
            self.x.d = self.data.next()[0]
            if self.dynamic:
                with nn.auto_forward():
                    self.loss = self.network()
            else:
                self.loss.forward()
            self.solver.zero_grad()
            self.loss.backward()
            self.comm.all_reduce(self.grads, division=True, compression=self.compression)
            self.solver.update()
            losses.append(float(self.loss.d))
        return losses

    def bits(self):
        found = {k: p.d.copy() for k, p in nn.get_parameters(grad_only=False).items()}
        for key, state in self.solver.get_states().items():
            found[f"t of {key}"] = np.array(state.t)
            found.update({f"{n} of {key}": v.d.copy() for n, v in state.pstate.items()})
        return found


def on_new_world(function):
    """Run `function` as a new process would begin: other parameters, seeds and counters."""
    fresh = World()
    fresh.context = current_world().context
    with world_scope(fresh):
        nn.seed(1234)
        PF.affine(nn.Variable((1, 2)), 2)
        nn.clear_parameters()
        return function()


@everywhere
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "make_solver",
    [
        lambda: S.Momentum(0.1),
        lambda: S.Adam(0.01),
        lambda: S.AdamW(0.01),
        lambda: S.AdaBelief(0.01, amsgrad=True, rectify=True),
        lambda: S.Lamb(0.01),
    ],
    ids=["Momentum", "Adam", "AdamW", "AdaBelief", "Lamb"],
)
def test_training_goes_on_with_the_same_bits(transport, make_solver, dynamic, folder):
    path = folder / "last.safetensors"

    def work():
        comm = connected()
        training = Training(comm, make_solver, dynamic)
        training.run(10)
        training.solver.set_learning_rate(0.02)
        save(path, training.solver, training.data, comm, iteration=10)
        expected = training.run(10), training.bits(), next_weights()
        training.data.close()

        def again():
            # The transport is the old World's; a communicator of it serves the new one.
            current_world().communicator = comm
            other = Training(comm, make_solver, dynamic)
            other.run(3)
            assert resume(path, other.solver, other.data, comm) == {"iteration": 10}
            assert other.solver.learning_rate() == 0.02
            found = other.run(10), other.bits(), next_weights()
            other.data.close()
            return found

        found = on_new_world(again)
        assert found[0] == expected[0]
        assert found[1].keys() == expected[1].keys()
        for name, array in found[1].items():
            assert np.array_equal(array, expected[1][name]), name
        assert np.array_equal(found[2], expected[2])
        assert expected[0][0] != expected[0][-1]

    on_ranks(transport, work)


def next_weights():
    """What an initializer draws next."""
    PF.affine(nn.Variable((1, 3)), 5, name="late")
    return nn.get_parameters()["late/affine/W"].d.copy()


@pytest.mark.parametrize("dynamic", [False, True])
def test_random_functions_with_a_seed_of_their_own_go_on(dynamic, tmp_path):
    """In static graphs; in dynamic ones each call begins anew, with or without a checkpoint."""
    path = tmp_path / "last.safetensors"
    x = nn.Variable.from_numpy_array(np.ones((8, 16), np.float32))

    def build():
        """Two of one seed, one of another, and one in a graph that runs less often."""
        hidden = F.dropout(x, 0.5, seed=3)
        return [F.dropout(hidden, 0.5, seed=3), F.dropout(x, 0.5, seed=4)], F.dropout(x, seed=3)

    def run(often, seldom, steps):
        found = []
        for step in range(steps):
            with nn.auto_forward(dynamic):
                graphs = [*often] if not dynamic else build()[0]
            for y in [*graphs, seldom] if step % 3 == 0 and not dynamic else graphs:
                if not dynamic:
                    y.forward()
                found.append(y.d.copy())
        return np.stack(found)

    often, seldom = build()
    run(often, seldom, 5)
    save(path)
    expected = run(often, seldom, 4)
    assert dynamic == all(np.array_equal(expected[0], y) for y in expected[::2])

    def again():
        often, seldom = build()
        run(often, seldom, 2)
        resume(path)
        return run(often, seldom, 4)

    found = on_new_world(again)
    np.testing.assert_array_equal(found, expected)


COMPRESSIONS = {
    "float16": lambda: C.HalfCompression(),
    "bfloat16": lambda: C.HalfCompression("bfloat16"),
    "PowerSGD": lambda: C.PowerSGD(rank=1, random_state=np.random.RandomState(7)),
}
every_compression = pytest.mark.parametrize("name", COMPRESSIONS)


def with_compression(comm, name):
    """A training with compressed gradients, in a new World."""
    current_world().communicator = comm
    return Training(comm, lambda: S.Momentum(0.1), width=16, compression=COMPRESSIONS[name]())


@several
@every_compression
def test_compressed_training_goes_on_with_the_same_bits(transport, name, folder):
    """Residuals of each rank, the basis and the random numbers of PowerSGD, the loss scale."""
    path = folder / "last.safetensors"

    def go_on(comm, lose):
        other = with_compression(comm, name)
        resume(path, other.solver, other.data, comm)
        assert other.compression.loss_scale == 4
        if lose:
            other.compression.set_states({**other.compression.get_states(), "residuals": {}})
        found = other.run(6), other.bits(), next_basis(other)
        other.data.close()
        return found

    def next_basis(training):
        """What a PowerSGD draws for a new gradient; nothing of others."""
        new = nn.NdArray.from_numpy_array(np.ones((20, 20), np.float32))
        training.comm.all_reduce(new, compression=training.compression)
        return new.data.copy()

    def work():
        comm = connected()
        training = with_compression(comm, name)
        training.run(6)
        training.compression.loss_scale = 4
        save(path, training.solver, training.data, comm)
        expected = training.run(6), training.bits(), next_basis(training)
        training.data.close()
        losses, bits, basis = on_new_world(lambda: go_on(comm, lose=False))
        assert losses == expected[0]
        for key, array in bits.items():
            assert np.array_equal(array, expected[1][key]), key
        assert np.array_equal(basis, expected[2])
        assert on_new_world(lambda: go_on(comm, lose=True))[0] != losses

    on_ranks(transport, work)


def test_other_compressions_are_refused_and_none_is_warned_of(tmp_path, caplog):
    path = tmp_path / "last.safetensors"

    def begin():
        comm = connected()
        training = with_compression(comm, "float16")
        training.run(3)
        save(path, training.solver, comm=comm)
        training.data.close()

    def go_on(name):
        comm = connected()
        compression = None if name is None else COMPRESSIONS[name]()
        training = Training(comm, lambda: S.Momentum(0.1), width=16, compression=compression)
        training.data.close()
        resume(path, training.solver, comm=comm)
        return None if compression is None else len(compression.residuals)

    C.run_threads(begin, 2)
    match = r"compressions \['HalfCompression\(bfloat16.* but in .* \['HalfCompression\(float16"
    with pytest.raises(CheckpointError, match=match):
        C.run_threads(go_on, 2, "bfloat16")
    assert not caplog.records
    C.run_threads(go_on, 2, None)
    assert "what was not sent yet is lost" in caplog.text
    assert C.run_threads(go_on, 2, "float16") == [6, 6]
    assert C.run_threads(go_on, 1, "bfloat16") == [0]  # on another number of ranks: anew


def test_a_compression_that_is_gone_or_of_another_world_is_not_saved():
    compression = C.HalfCompression()
    assert list(current_world().compressions.values()) == [compression]
    with world_scope(World()) as other:
        C.PowerSGD()
        assert not other.compressions
    assert list(current_world().compressions.values()) == [compression]


@several
def test_what_differs_between_ranks_comes_back_to_its_rank(transport, folder):
    path = folder / "last.safetensors"

    class Feedback:
        def __init__(self, states):
            self.states = states

        def get_states(self):
            return self.states

        def set_states(self, states):
            self.states = states

    def work():
        comm = connected()
        PF.batch_normalization(nn.Variable((2, 3)))
        mean = nn.get_parameters(grad_only=False)["bn/mean"]
        mean.d = comm.rank
        nn.get_parameters()["bn/gamma"].d = 7
        error = Feedback({"conv/W": np.full(3, comm.rank), "steps": [1, (2.5, None)]})
        save(path, comm=comm, others={"error": error}, nested={"a": [1, np.arange(3)]})
        mean.d = -1
        nn.get_parameters()["bn/gamma"].d = -1
        again = Feedback(None)
        extra = resume(path, comm=comm, others={"error": again})
        assert np.all(mean.d == comm.rank)
        assert np.all(nn.get_parameters()["bn/gamma"].d == 7)
        assert np.array_equal(again.states["conv/W"], np.full(3, comm.rank))
        assert again.states["steps"] == [1, (2.5, None)]
        assert np.array_equal(extra["nested"]["a"][1], np.arange(3))

    on_ranks(transport, work)


def test_another_number_of_ranks_gets_what_all_share(tmp_path):
    path = tmp_path / "two.safetensors"

    def work():
        comm = connected()
        training = Training(comm, lambda: S.Adam(0.01))
        training.run(4)
        save(path, training.solver, training.data, comm)
        training.data.close()
        return training.bits()

    expected = C.run_threads(work, 2)[0]
    training = Training(connected(), lambda: S.Adam(0.01))
    with pytest.raises(CheckpointError, match="is of 2 ranks but here are 1: pass iterator=None"):
        resume(path, training.solver, training.data)
    resume(path, training.solver)
    found = training.bits()
    training.data.close()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


# -- files that are not whole ----------------------------------------------------------------------


def small(width=4, value=1.0):
    PF.affine(nn.Variable((2, 3)), width)
    for p in nn.get_parameters().values():
        p.d = value
    solver = S.Momentum(0.1)
    solver.set_parameters(nn.get_parameters())
    return solver


def test_every_byte_counts(tmp_path):
    path = tmp_path / "a.safetensors"
    solver = small(2)
    save(path, solver, step=3)
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :])
        with pytest.raises(CheckpointError, match=r"damaged|no checkpoint, or cut off"):
            resume(path, solver)
    for length in (0, 7, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"damaged|no checkpoint, or cut off"):
            resume(path, solver)
    path.write_bytes(whole)
    assert resume(path, solver) == {"step": 3}


CRASHES = """
import os, sys
import distnn as nn, distnn.parametric_functions as PF
from distnn.checkpoint import save

PF.affine(nn.Variable((2, 3)), 4)
save(sys.argv[1], step=1)
os.replace = lambda a, b: os._exit(9)
save(sys.argv[1], step=2, keep=int(sys.argv[2]))
"""


@pytest.mark.parametrize("keep", [1, 2])
def test_a_crash_between_writing_and_renaming_leaves_the_old_file(tmp_path, keep):
    path = tmp_path / "a.safetensors"
    command = [sys.executable, "-c", CRASHES, str(path), str(keep)]
    assert subprocess.run(command, check=False).returncode == 9
    assert any(name.endswith(".tmp") for name in os.listdir(tmp_path))
    small()
    assert resume(path) == {"step": 1}


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    small()
    save(path, step=1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot be written: .*No space left"):
        save(path, step=2)
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert resume(path) == {"step": 1}


def test_the_last_n_are_kept(tmp_path):
    path = tmp_path / "a.safetensors"
    small()
    for step in range(5):
        save(path, keep=3, step=step)
    assert sorted(os.listdir(tmp_path)) == [
        "a.1.safetensors", "a.2.safetensors", "a.safetensors"
    ]  # fmt: skip
    names = ("a.safetensors", "a.1.safetensors", "a.2.safetensors")
    assert [resume(tmp_path / name)["step"] for name in names] == [4, 3, 2]


def test_others_can_read_it(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "a.safetensors"
    small(value=2.5)
    save(path)
    found = safetensors.load_file(path)
    assert np.array_equal(found["parameters/affine/W"], np.full((3, 4), 2.5, np.float32))


# -- what does not fit -----------------------------------------------------------------------------


def changed(parameters):
    return {name: p.d.copy() for name, p in parameters.items()}


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: small(5), r"parameter 'affine/W' is \(3, 5\) float32 but in .* \(3, 4\) float32"),
        (lambda: None, r"parameter 'affine/W' is in .* but not here; build the network before"),
        (
            lambda: (small(), PF.affine(nn.Variable((1, 2)), 2, name="x"))[0],
            r"parameter 'x/affine/W' is here but not in",
        ),
        (lambda: (small(), adam())[1], r"solver 0 is Adam with .* but that of .* is Momentum"),
        (lambda: [small(), small()], r"got 2 solvers but .* has 1"),
        (
            lambda: (small(), momentum(0.5))[1],
            r"'momentum': 0\.5.* is Momentum with .*'momentum': 0\.9",
        ),
    ],
)
def test_another_network_or_solver_is_named_and_nothing_is_changed(build, match, tmp_path):
    path = tmp_path / "a.safetensors"
    with world_scope(World()):
        save(path, small(value=3.0))
    solver = build()
    before = changed(nn.get_parameters())
    with pytest.raises(CheckpointError, match=match):
        resume(path, solver)
    after = changed(nn.get_parameters())
    assert all(np.array_equal(before[name], after[name]) for name in before)


def adam():
    solver = S.Adam()
    solver.set_parameters(nn.get_parameters())
    return solver


def momentum(value):
    solver = S.Momentum(0.1, value)
    solver.set_parameters(nn.get_parameters())
    return solver


@several
def test_what_goes_wrong_on_one_rank_is_raised_on_all(transport, folder):
    def work():
        comm = connected()
        with pytest.raises(CheckpointError, match=r"cannot be read: .*missing"):
            resume(folder / "missing", comm=comm)
        with pytest.raises(CheckpointError, match=r"cannot be written: .*nowhere"):
            save(folder / "nowhere" / "a.safetensors", comm=comm)
        solver = small()
        save(folder / "a.safetensors", solver, comm=comm)
        if comm.rank == 1:
            solver = adam()
        with pytest.raises(CheckpointError, match=r"solver 0 is Adam"):
            resume(folder / "a.safetensors", solver, comm=comm)
        assert resume(folder / "a.safetensors", comm=comm) == {}

    on_ranks(transport, work)


def test_an_iterator_of_other_data_is_refused_before_anything_is_changed(tmp_path):
    path = tmp_path / "a.safetensors"
    small(value=3.0)
    with data_iterator_simple(lambda i: (i,), 10, 2, shuffle=True) as data:
        save(path, iterator=data)
    small(value=1.0)
    with (
        data_iterator_simple(lambda i: (i,), 12, 2, shuffle=True) as data,
        pytest.raises(ArgumentError, match="size 10 but here"),
    ):
        resume(path, iterator=data)
    assert np.all(nn.get_parameters()["affine/W"].d == 1)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda p: save(p, keep=0), "keep is 0"),
        (lambda p: save(p, step=object()), r"\[save\] extra/step is object; pass numbers"),
        (lambda p: save(p, table={1: 2}), r"\[save\] extra/table is a dict with keys that are no"),
        (lambda p: save(p, names=np.array(["a"])), r"extra/names has dtype <U1"),
        (lambda p: (save(p), resume(p, iterator=object())), "saved without iterator"),
        (lambda p: (save(p), resume(p, others={"e": None})), r"no states of \['e'\] but of \[\]"),
    ],
)
def test_bad_arguments_are_named(call, match, tmp_path):
    with pytest.raises(CheckpointError, match=match):
        call(tmp_path / "a.safetensors")
