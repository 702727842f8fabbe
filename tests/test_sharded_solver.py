"""Sharded solvers against the same solver with all states on every rank, and against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from cases_solvers import RULES
from ranks import MPI, ON_GPUS, connected, on_ranks

import distnn as nn
import distnn.communicators as C
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S
from distnn.communicators.shards import assign
from distnn.errors import ArgumentError, CommunicatorError, SolverError
from distnn.parameter import create_parameter

everywhere = pytest.mark.parametrize(
    "transport", ["single", "threads 2", "threads 3", "threads 4", MPI, *ON_GPUS]
)
several = pytest.mark.parametrize(
    "transport", ["threads 2", "threads 3", "threads 4", MPI, *ON_GPUS]
)
SHAPES = [(30, 40), (40,), (40, 50), (50,), (50, 7), (7,), (3, 3, 4), (600,)]
SOLVERS = {
    name: RULES[name][0]
    for name in ("Sgd", "Momentum", "Adam", "AdamW", "AdaBelief with everything", "Lars", "Lamb")
}
every_solver = pytest.mark.parametrize("name", SOLVERS)


def parameters(prefix, shapes=SHAPES, offset=0):
    """Parameters in the slab, with equal values for any prefix."""
    rng = np.random.RandomState(offset)
    found = {}
    for i, shape in enumerate(shapes):
        found[f"p{offset + i}"] = p = create_parameter(f"{prefix}/p{offset + i}", shape, None, True)
        p.d = rng.uniform(-1, 1, shape).astype(np.float32)
    return found


def gradient(rank, step, i, shape):
    rng = np.random.RandomState(10_000 * rank + 100 * step + i)
    return rng.standard_normal(shape).astype(np.float32)


def set_gradients(found, rank, step):
    for i, p in enumerate(found.values()):
        p.g = gradient(rank, step, i, p.shape)


def assert_equal(one, other, exact):
    for key in one:
        if exact:
            assert np.array_equal(one[key].d, other[key].d), key
        else:
            np.testing.assert_allclose(one[key].d, other[key].d, rtol=1e-4, atol=1e-6)


def steps(comm, plain, sharded, whole, shards, count, first=0):
    """Updates of both with the same gradients."""
    for step in range(first, first + count):
        for solver, found in ((plain, whole), (sharded, shards)):
            solver.zero_grad()
            set_gradients(found, comm.rank, step)
            if solver is plain:
                comm.all_reduce([p.grad for p in found.values()], division=True)
            else:
                solver.reduce_gradients(division=True)
            solver.weight_decay(0.01)
            solver.clip_grad_by_norm(3.0)
            solver.update()


def pair(comm, name, shapes=SHAPES):
    """The same parameters with a solver on every rank, and with a sharded one."""
    whole, shards = parameters("whole", shapes), parameters("shards", shapes)
    plain, sharded = SOLVERS[name](), C.ShardedSolver(SOLVERS[name](), comm)
    plain.set_parameters(whole)
    sharded.set_parameters(shards)
    return plain, sharded, whole, shards


@everywhere
@every_solver
def test_a_sharded_solver_equals_the_solver(transport, name):
    """To the bit where sums are taken in the order of ranks by both: threads, and two ranks."""

    def work():
        comm = connected()
        plain, sharded, whole, shards = pair(comm, name)
        steps(comm, plain, sharded, whole, shards, 5)
        assert_equal(whole, shards, transport != "mpi" or comm.size == 2)
        assert not np.array_equal(shards["p0"].d, parameters("fresh")["p0"].d)

    on_ranks(transport, work)


@several
@every_solver
def test_a_sharded_solver_follows_the_equations(transport, name):
    _, rule = RULES[name]

    def work():
        comm = connected()
        shards = parameters("shards")
        sharded = C.ShardedSolver(RULES[name][0](), comm)
        sharded.set_parameters(shards)
        w = {key: p.d.astype(np.float64) for key, p in shards.items()}
        state = {key: dict.fromkeys(RULES[name][0]().states, 0.0) for key in shards}
        for step in range(4):
            sharded.zero_grad()
            set_gradients(shards, comm.rank, step)
            sharded.reduce_gradients()
            sharded.clip_grad_by_norm(2.0)
            sharded.update()
            for i, key in enumerate(shards):
                grads = [gradient(r, step, i, w[key].shape) for r in range(comm.size)]
                g = sum(one.astype(np.float64) for one in grads)
                g *= min(1, 2.0 / np.linalg.norm(g))
                w[key] = rule(w[key], g, state[key], step + 1)
        for key, p in shards.items():
            np.testing.assert_allclose(p.d, w[key], rtol=1e-4, atol=1e-5)

    on_ranks(transport, work)


def network(x):
    h = F.tanh(PF.affine(x, 30, name="1"))
    PF.affine(h, 3, name="unused")
    return F.mean(PF.affine(F.tanh(PF.affine(h, 20, name="2")), 3, name="3") ** 2)


@everywhere
@pytest.mark.parametrize("pack_size", [1, 200, 10**6])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_callback_sums_gradients_on_their_owners_while_backward_runs(
    transport, pack_size, dynamic
):
    """Against Adam in float64 from its definition, on gradients that NumPy adds up over ranks."""
    steps, scale = 3, 0.5

    def data(rank, step):
        return np.random.RandomState(10 * rank + step).uniform(-1, 1, (4, 5)).astype(np.float32)

    def work():
        comm = connected()
        nn.seed(1)
        x = nn.Variable((4, 5))
        loss = network(x)
        found = nn.get_parameters()
        _, rule = RULES["Adam"]
        w = {key: p.d.astype(np.float64) for key, p in found.items()}
        state = {key: dict.fromkeys(("m", "mean", "var"), 0.0) for key in found}
        solver = C.ShardedSolver(RULES["Adam"][0](), comm)
        solver.set_parameters(found)
        callback = solver.reduce_callback(pack_size, division=True, scale_grad=scale)
        for step in range(steps):
            sums = dict.fromkeys(found, 0.0)
            for rank in range(comm.size):  # the same graph on all ranks' data
                x.d = data(rank, step)
                loss.forward()
                solver.zero_grad()
                loss.backward()
                for key, p in found.items():
                    sums[key] = sums[key] + p.grad.get_data("r").astype(np.float64)
            x.d = data(comm.rank, step)
            with nn.auto_forward(dynamic):
                mine = network(x) if dynamic else loss
            if not dynamic:
                mine.forward()
            solver.zero_grad()
            mine.backward(communicator_callbacks=callback)
            assert len(callback.report().buckets) == len(callback.buckets)
            for key, p in found.items():
                if "unused" in key:
                    assert p.grad.zeroing
                    continue
                sums[key] *= scale / comm.size
                if solver.owner(key) == comm.rank:
                    np.testing.assert_allclose(p.g, sums[key], rtol=1e-4, atol=1e-7)
                w[key] = rule(w[key], sums[key], state[key], step + 1)
            solver.update()
            for key, p in found.items():
                np.testing.assert_allclose(p.d, w[key], rtol=1e-3, atol=1e-4, err_msg=key)
                p.d = w[key].astype(np.float32)  # small gradients make Adam's first steps wild

    on_ranks(transport, work)


@several
def test_a_callback_equals_reduce_gradients(transport):
    def work():
        comm = connected()
        shards = parameters("shards")
        solver = C.ShardedSolver(SOLVERS["Sgd"](), comm)
        solver.set_parameters(shards)
        callback = solver.reduce_callback(1000, division=True)
        loss = sum(F.sum(p * p) for p in shards.values())
        found = []
        for reduce in ("callback", "reduce_gradients"):
            solver.zero_grad()
            for key, p in shards.items():
                p.d = gradient(comm.rank, 0, int(key[1:]), p.shape)
            loss.forward()
            loss.backward(communicator_callbacks=callback if reduce == "callback" else None)
            if reduce == "reduce_gradients":
                solver.reduce_gradients(division=True)
            mine = {key: p for key, p in shards.items() if solver.owner(key) == comm.rank}
            found.append({key: p.g.copy() for key, p in mine.items()})
        exact = transport != "mpi" or comm.size == 2
        for key, one in found[0].items():
            np.testing.assert_allclose(one, found[1][key], *((0, 0) if exact else (1e-5, 1e-6)))

    on_ranks(transport, work)


@several
def test_a_callback_knows_owners_as_they_are_and_gradients_as_they_were(transport):
    def work():
        comm = connected()
        shards = parameters("shards")
        solver = C.ShardedSolver(SOLVERS["Sgd"](), comm)
        solver.set_parameters(shards)
        callback = solver.reduce_callback()
        loss = sum(F.sum(p) for p in shards.values())
        loss.forward()
        solver.set_parameters(dict(reversed(shards.items())))  # other owners
        for grad in [p.grad for p in shards.values()]:
            grad.zero()
        loss.backward(communicator_callbacks=callback)
        for key, p in shards.items():
            if solver.owner(key) == comm.rank:
                np.testing.assert_array_equal(p.g, np.full(p.shape, comm.size))
        solver.remove_parameters(["p3"])
        with pytest.raises(CommunicatorError, match=r"not registered any more; make the callback"):
            loss.backward(communicator_callbacks=callback)
        loss.backward(communicator_callbacks=solver.reduce_callback())

    on_ranks(transport, work)


@several
def test_each_rank_keeps_its_share_of_the_states_and_shards_are_neighbours(transport):
    shapes = [(100 + 10 * (i % 5),) for i in range(40)]
    total = sum(s[0] for s in shapes)

    def work():
        comm = connected()
        shards = parameters("shards", shapes)
        solver = S.Adam()
        sharded = C.ShardedSolver(solver, comm)
        sharded.set_parameters(shards)
        kept = sum(v.size for state in solver.get_states().values() for v in state.pstate.values())
        assert abs(kept - 2 * total / comm.size) <= 2 * 140
        owners = [sharded.owner(key) for key in shards]
        assert owners == sorted(owners)
        assert set(owners) == set(range(comm.size))
        assert list(solver.get_parameters()) == [k for k in shards if sharded.owner(k) == comm.rank]
        assert list(sharded.get_parameters()) == list(shards)

    on_ranks(transport, work)


@pytest.mark.parametrize("seed", range(20))
def test_no_rank_has_more_than_its_share_and_half_a_parameter_more_at_each_end(seed):
    rng = np.random.RandomState(seed)
    sizes = rng.randint(0, 1000, rng.randint(1, 30)).tolist()
    load = rng.randint(0, 1000, rng.randint(1, 6)).tolist()
    owners = assign(sizes, load)
    assert owners == sorted(owners)
    assert min(owners) >= 0
    assert max(owners) < len(load)
    share = (sum(sizes) + sum(load)) / len(load)
    for r in range(len(load)):
        mine = sum(s for s, o in zip(sizes, owners, strict=True) if o == r)
        assert mine <= max(share - load[r], 0) + max(sizes)


@several
def test_the_global_norm_is_that_of_all_gradients(transport):
    def work():
        comm = connected()
        shards = parameters("shards")
        sharded = C.ShardedSolver(S.Sgd(1.0), comm)
        sharded.set_parameters(shards)
        before = {key: p.d.astype(np.float64) for key, p in shards.items()}
        sharded.zero_grad()
        set_gradients(shards, comm.rank, 0)
        sharded.reduce_gradients()
        norm = sharded.clip_grad_by_global_norm(5.0)
        sharded.update()
        sums = [
            sum(gradient(r, 0, i, s).astype(np.float64) for r in range(comm.size))
            for i, s in enumerate(SHAPES)
        ]
        expected = np.sqrt(sum((g**2).sum() for g in sums))
        np.testing.assert_allclose(norm, expected, rtol=1e-6)
        for (key, p), g in zip(shards.items(), sums, strict=True):
            np.testing.assert_allclose(p.d, before[key] - g * 5 / expected, rtol=1e-5, atol=1e-6)

    on_ranks(transport, work)


@several
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_checks_answer_alike_on_all_ranks(transport, bad):
    def work():
        comm = connected()
        shards = parameters("shards")
        sharded = C.ShardedSolver(S.Sgd(), comm)
        sharded.set_parameters(shards)
        set_gradients(shards, comm.rank, 0)
        sharded.reduce_gradients()
        assert not sharded.check_inf_or_nan_grad()
        set_gradients(shards, comm.rank, 0)
        if comm.rank == 1:
            shards["p0"].g[2, 3] = bad
        sharded.reduce_gradients()
        assert sharded.check_inf_or_nan_grad()
        assert sharded.check_inf_grad() == np.isinf(bad)
        assert sharded.check_nan_grad() == np.isnan(bad)

    on_ranks(transport, work)


@everywhere
def test_states_are_gathered_and_set_again(transport):
    def work():
        comm = connected()
        plain, sharded, whole, shards = pair(comm, "Adam")
        steps(comm, plain, sharded, whole, shards, 3)
        states, expected = sharded.get_states(), plain.get_states()
        assert list(states) == list(expected)
        for key, state in expected.items():
            assert states[key].t == state.t == 3
            for name, values in state.pstate.items():
                np.testing.assert_allclose(
                    states[key].pstate[name].d, values.d, rtol=1e-4, atol=1e-6
                )
        again = C.ShardedSolver(SOLVERS["Adam"](), comm)
        again.set_parameters(shards)
        again.set_states(states)
        steps(comm, plain, again, whole, shards, 2, first=3)
        assert_equal(whole, shards, transport != "mpi" or comm.size == 2)

    on_ranks(transport, work)


@pytest.mark.parametrize("ending", ["h5", "safetensors"])
def test_a_file_of_states_goes_on_with_another_number_of_ranks(tmp_path, ending):
    pytest.importorskip("h5py" if ending == "h5" else "safetensors")
    path = str(tmp_path / f"adam.{ending}")

    def begin():
        comm = connected()
        plain, sharded, whole, shards = pair(comm, "Adam")
        steps(comm, plain, sharded, whole, shards, 3)
        sharded.save_states(path)

    def go_on():
        comm = connected()
        shards = parameters("shards")
        sharded = C.ShardedSolver(SOLVERS["Adam"](), comm)
        sharded.set_parameters(shards)
        sharded.load_states(path)
        for key, state in sharded.get_states().items():
            assert state.t == 3
            assert state.pstate["mean"].d.any(), key
        return {k: (s.pstate["mean"].d, s.pstate["var"].d) for k, s in sharded.get_states().items()}

    C.run_threads(begin, 4)
    one = C.run_threads(go_on, 1)[0]
    for other in C.run_threads(go_on, 3):
        for key, (mean, var) in one.items():
            assert np.array_equal(other[key][0], mean)
            assert np.array_equal(other[key][1], var)


@several
def test_parameters_that_come_later_are_shared_out_and_old_ones_stay(transport):
    def work():
        comm = connected()
        plain, sharded, whole, shards = pair(comm, "Momentum", SHAPES[:3])
        steps(comm, plain, sharded, whole, shards, 2)
        owners = {key: sharded.owner(key) for key in shards}
        for offset in (3, 6):
            late = SHAPES[offset : offset + 3]
            whole |= parameters("whole", late, offset)
            shards |= parameters("shards", late, offset)
            for solver, found in ((plain, whole), (sharded, shards)):
                solver.set_parameters(found, reset=False, retain_state=True)
            steps(comm, plain, sharded, whole, shards, 2, first=offset)
            assert all(sharded.owner(key) == r for key, r in owners.items())
        assert [s.t for s in sharded.get_states().values()] == [6, 6, 6, 4, 4, 4, 2, 2]
        assert_equal(whole, shards, transport != "mpi" or comm.size == 2)

    on_ranks(transport, work)


@several
def test_a_dynamic_graph_with_layers_that_come_and_go_equals_the_solver(transport):
    """Stochastic depth: a layer is used by some ranks only, or by none, or for the first time."""

    def network(x, depth):
        h = PF.affine(x, 10, name="first")
        for i in range(depth):
            h = F.tanh(PF.affine(h, 10, name=f"inner{i}"))
        return F.mean(PF.affine(h, 3, name="last") ** 2)

    def train(sharding):
        comm = connected()
        nn.clear_parameters()
        nn.seed(313)
        nn.set_default_context(nn.Context())
        solver = S.Adam(0.01)
        if sharding:
            solver = C.ShardedSolver(solver, comm)
        rng = np.random.RandomState(comm.rank)
        for step in range(8):
            for i in range(step // 2 + 1):  # the same parameters everywhere, in the same order
                network(nn.Variable((4, 6)), i)
            found = nn.get_parameters()
            solver.set_parameters(found, reset=False, retain_state=True)
            with nn.auto_forward():
                x = nn.Variable.from_numpy_array(rng.standard_normal((4, 6)).astype(np.float32))
                loss = network(x, max(0, step // 2 - (comm.rank + step) % 2))
            solver.zero_grad()
            loss.backward()
            if sharding:
                solver.reduce_gradients(division=True)
            else:
                comm.all_reduce([p.grad for p in found.values()], division=True)
            solver.update()
        counts = {key: state.t for key, state in solver.get_states().items()}
        return {key: p.d.copy() for key, p in found.items()}, counts, comm.size

    def work():
        expected, counts, size = train(False)
        found, t, _ = train(True)
        assert t == counts
        assert min(counts.values()) < max(counts.values())
        for key, values in expected.items():
            if transport != "mpi" or size == 2:
                assert np.array_equal(found[key], values), key
            else:
                np.testing.assert_allclose(found[key], values, rtol=1e-3, atol=1e-5)

    on_ranks(transport, work)


@several
def test_sums_made_by_a_callback_during_backward_serve_as_well(transport):
    def work():
        comm = connected()
        found = []
        for sharding in (False, True):
            nn.clear_parameters()
            nn.seed(313)
            x = nn.Variable((4, 6))
            x.d = np.random.RandomState(comm.rank).standard_normal((4, 6))
            loss = F.mean(PF.affine(F.tanh(PF.affine(x, 20, name="1")), 3, name="2") ** 2)
            solver = C.ShardedSolver(S.Adam(0.01), comm) if sharding else S.Adam(0.01)
            solver.set_parameters(nn.get_parameters())
            callback = comm.all_reduce_callback(
                [p.grad for p in nn.get_parameters().values()], 50, division=True
            )
            for _ in range(3):
                loss.forward()
                solver.zero_grad()
                loss.backward(communicator_callbacks=callback)
                solver.update()
            found.append([p.d.copy() for p in nn.get_parameters().values()])
        for plain, shards in zip(*found, strict=True):
            assert np.array_equal(plain, shards)

    on_ranks(transport, work)


@several
def test_values_assigned_in_another_dtype_and_large_arrays_in_pieces(transport, monkeypatch):
    monkeypatch.setattr("distnn.communicators.shards._PIECE_BYTES", 1000)

    def work():
        comm = connected()
        plain, sharded, whole, shards = pair(comm, "Momentum")
        free = {"free": np.arange(5)}
        for found, solver in ((whole, plain), (shards, sharded)):
            found["p0"].d = np.ones(SHAPES[0])  # float64
            found["p3"].d = np.ones(SHAPES[3], np.int64)
            for key, values in free.items():
                found[key] = nn.Variable(values.shape, need_grad=True)
                found[key].d = values
            solver.set_parameters(found, reset=True, retain_state=True)
        steps(comm, plain, sharded, whole, shards, 2)
        assert_equal(whole, shards, transport != "mpi" or comm.size == 2)
        assert all(p.d.dtype == np.float32 for p in shards.values())

    on_ranks(transport, work)


@several
def test_a_group_of_ranks_shards_among_itself(transport):
    def work():
        comm = connected()
        ranks = list(range(comm.size))[-2:]
        comm.new_group(("last two", ranks))
        if comm.rank not in ranks:
            return
        shards = parameters("shards")
        sharded = C.ShardedSolver(S.Sgd(1.0), comm, group="last two")
        sharded.set_parameters(shards)
        before = shards["p7"].d.astype(np.float64)
        set_gradients(shards, comm.rank, 0)
        sharded.reduce_gradients(division=True)
        sharded.update()
        mean = sum(gradient(r, 0, 7, SHAPES[7]).astype(np.float64) for r in ranks) / 2
        np.testing.assert_allclose(shards["p7"].d, before - mean, atol=1e-6)

    on_ranks(transport, work)


def test_removed_parameters_are_left_alone():
    comm = connected()
    shards = parameters("shards")
    sharded = C.ShardedSolver(S.Sgd(1.0), comm)
    sharded.set_parameters(shards)
    sharded.remove_parameters(["p0"])
    before = shards["p0"].d.copy()
    set_gradients(shards, 0, 0)
    sharded.reduce_gradients()
    sharded.update()
    assert np.array_equal(shards["p0"].d, before)
    assert list(sharded.get_states()) == list(shards)[1:]
    sharded.clear_parameters()
    assert not sharded.get_parameters()
    sharded.reduce_gradients()
    sharded.update()


@several
def test_errors_are_raised_on_all_ranks(transport):
    def work():
        comm = connected()
        shards = parameters("shards")
        sharded = C.ShardedSolver(S.Adam(), comm)
        with pytest.raises(SolverError, match="param_dict is list"):
            sharded.set_parameters([])
        sharded.set_parameters(shards)
        other = nn.Variable((3, 3), need_grad=True)
        with pytest.raises(SolverError, match=r"'p0' has shape \(3, 3\) but .* \(30, 40\)"):
            sharded.set_parameters({"p0": other}, reset=False, retain_state=True)
        states = sharded.get_states()
        with pytest.raises(SolverError, match="'unknown' is not registered"):
            sharded.set_states({"unknown": states["p0"]})
        with pytest.raises(SolverError, match=r"'p0' has states of shapes \{'mean': \(40,\)"):
            sharded.set_states({"p0": states["p1"]})
        with pytest.raises(SolverError, match="unknown"):
            sharded.remove_parameters(["unknown"])
        with pytest.raises(SolverError):
            sharded.save_states("states.txt")
        with pytest.raises(ArgumentError, match="clip_norm is 0"):
            sharded.clip_grad_by_global_norm(0)
        plain = S.Adam()
        plain.set_parameters(shards)
        with pytest.raises(ArgumentError, match="has parameters already, 8 of them"):
            C.ShardedSolver(plain, comm)
        if comm.rank == 0:
            sharded.remove_parameters(["p1"])
        with pytest.raises(CommunicatorError, match="ranks disagree"):
            sharded.update()

    on_ranks(transport, work)
