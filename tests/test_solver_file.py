"""Solver-state files."""

import logging
import os

import numpy as np
import pytest
from cases_solvers import RULES

import distnn as nn
import distnn.solvers as S
from distnn.errors import SolverError
from distnn.parameter import get_parameter_or_create
from distnn.solver_file import load_states, save_states
from distnn.solvers.solver import SolverState

h5py = pytest.importorskip("h5py", reason="solver-state files need distnn[io]")
pytest.importorskip("safetensors", reason="solver-state files need distnn[io]")
from safetensors.numpy import load_file  # noqa: E402 (after the check that it is there)

ENDINGS = [".h5", ".safetensors"]
both_formats = pytest.mark.parametrize("ending", ENDINGS)


def parameters(*keys):
    """Parameters of different shapes by key. Keys of a solver may lie above each other."""
    return {
        key: get_parameter_or_create(f"p{i}", (2, i + 1), np.ones) for i, key in enumerate(keys)
    }


def trained(solver, registered, seed):
    """The solver after two updates of all parameters and a third of the first."""
    solver.set_parameters(registered)
    rng = np.random.RandomState(seed)
    for step in range(3):
        solver.zero_grad()
        for p in list(registered.values())[: None if step < 2 else 1]:
            p.g = rng.randn(*p.shape).astype(np.float32)
        solver.update()
    return solver


def plain(states):
    """States as plain values: key -> (t, name -> array)."""
    return {
        key: (state.t, {name: v.d.copy() for name, v in state.pstate.items()})
        for key, state in states.items()
    }


def assert_equal(states, expected):
    assert list(states) == list(expected)
    for key, (t, arrays) in expected.items():
        assert states[key][0] == t
        assert set(states[key][1]) == set(arrays)
        for name, values in arrays.items():
            np.testing.assert_array_equal(states[key][1][name], values)


def nnabla_file(path, states):
    """A file as NNabla writes it: key -> (t, name -> array)."""
    with h5py.File(path, "w") as file:
        for index, (key, (t, arrays)) in enumerate(states.items()):
            group = file.require_group(key)
            group.attrs["index"] = index
            group["t"] = t
            for number, (name, values) in enumerate(arrays.items()):
                group[name] = values
                group[name].attrs["index"] = number


def test_an_h5_file_has_the_layout_of_nnabla(tmp_path):
    solver = trained(S.Adam(), parameters("net/b", "a/W"), seed=1)
    expected = plain(solver.get_states())
    solver.save_states(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "r") as file:
        datasets = []
        file.visititems(lambda name, item: datasets.append(name) if "dtype" in dir(item) else None)
        assert sorted(datasets) == [
            f"{key}/{name}" for key in ("a/W", "net/b") for name in ("mean", "t", "var")
        ]
        for index, key in enumerate(("net/b", "a/W")):
            assert isinstance(file[key], h5py.Group)
            assert file[key].attrs["index"].dtype == np.int64
            assert file[key].attrs["index"] == index
            assert file[key]["t"].shape == ()
            assert file[key]["t"].dtype.kind == "i"
            assert file[key]["t"][()] == (3, 2)[index]
            for number, name in enumerate(("mean", "var")):
                assert file[key][name].attrs["index"] == number
                assert file[key][name].dtype == np.float32
                np.testing.assert_array_equal(file[key][name][()], expected[key][1][name])
                assert np.any(expected[key][1][name])


def test_a_safetensors_file_has_the_same_names(tmp_path):
    solver = trained(S.Momentum(), parameters("a/W"), seed=1)
    solver.save_states(tmp_path / "s.safetensors")
    tensors = load_file(tmp_path / "s.safetensors")
    assert sorted(tensors) == ["a/W/m", "a/W/t"]
    assert tensors["a/W/t"] == 3
    np.testing.assert_array_equal(tensors["a/W/m"], solver.get_states()["a/W"].pstate["m"].d)


@both_formats
@pytest.mark.parametrize("kind", [make for make, _ in RULES.values()], ids=RULES)
def test_a_round_trip_restores_states_and_step_counts(tmp_path, ending, kind):
    # Names that begin with each other, and names that lie above each other.
    registered = parameters("w", "w2", "a", "a/b", "a/b/c", "b")
    solver = trained(kind(), registered, seed=1)
    expected = plain(solver.get_states())
    solver.save_states(str(tmp_path / f"s{ending}"))
    other = trained(kind(), registered, seed=2)
    for p in registered.values():
        p.g = 1
    other.update()
    other.load_states(str(tmp_path / f"s{ending}"))
    assert_equal(plain(other.get_states()), expected)


@both_formats
def test_training_goes_on_after_loading_as_if_it_had_not_stopped(tmp_path, ending):
    path = tmp_path / f"s{ending}"
    gradients = np.random.RandomState(3).randn(4, 2, 1).astype(np.float32)
    w = parameters("w")["w"]
    results = []
    for stop in (False, True):
        w.d = 1
        solver = S.Adam(0.1)
        solver.set_parameters({"w": w})
        for step, gradient in enumerate(gradients):
            if stop and step == 2:
                solver.save_states(path)
                solver = S.Adam(0.1)
                solver.set_parameters({"w": w})
                solver.load_states(path)
            w.g = gradient
            solver.update()
        results.append(w.d.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("keys", [("w", "w2"), ("w2", "w"), ("a", "a/b"), ("a/b", "a")])
def test_a_file_of_nnabla_is_read_by_exact_names(tmp_path, keys):
    """NNabla reads by `startswith`: "w" gets the state of "w2"."""
    registered = parameters(*keys)
    expected = {
        key: (t, {"m": np.full(registered[key].shape, t, np.float32)})
        for t, key in enumerate(keys, start=5)
    }
    nnabla_file(tmp_path / "s.h5", expected)
    solver = S.Momentum()
    solver.set_parameters(registered)
    solver.load_states(tmp_path / "s.h5")
    assert_equal(plain(solver.get_states()), expected)


@pytest.mark.parametrize("t", [np.int32(7), np.uint32(7), 7, np.array([7])])
def test_every_integer_is_a_step_count(tmp_path, t):
    nnabla_file(tmp_path / "s.h5", {"w": (t, {"m": np.ones((2, 1), ">f4")})})
    loaded = load_states(tmp_path / "s.h5", ["w"], ("m",))
    assert loaded["w"].pstate["m"].d.dtype == np.float32  # in this machine's order of bytes
    assert loaded["w"].t == 7
    assert type(loaded["w"].t) is int


def test_parameters_that_the_solver_does_not_have_are_ignored_with_one_line(tmp_path, caplog):
    states = {key: (1, {"m": np.ones((2, 1), np.float32)}) for key in ("w", "w2", "w/x", "v")}
    nnabla_file(tmp_path / "s.h5", states)
    solver = S.Momentum()
    solver.set_parameters(parameters("w"))
    with caplog.at_level(logging.WARNING, logger="distnn"):
        solver.load_states(tmp_path / "s.h5")
    assert len(caplog.records) == 1
    text = caplog.records[0].getMessage()
    assert all(repr(key) in text for key in ("w2", "w/x", "v"))
    assert repr("w") not in text
    assert_equal(plain(solver.get_states()), {"w": states["w"]})


def test_a_file_of_exactly_the_registered_parameters_logs_nothing(tmp_path, caplog):
    solver = trained(S.Momentum(), parameters("w", "w2"), seed=1)
    solver.save_states(tmp_path / "s.h5")
    solver.load_states(tmp_path / "s.h5")
    assert caplog.records == []


ONE = {"m": np.ones((2, 1), np.float32)}


@pytest.mark.parametrize(
    ("states", "text"),
    [
        ({"w2": (1, ONE)}, r"'w' is registered but not in '.*s\.h5', which has \['w2'\]"),
        ({"w/x": (1, ONE)}, "'w' is registered but not in"),
        (
            {"w": (1, {"mean": ONE["m"], "var": ONE["m"]})},
            r"'w' has states \['mean', 'var'\] in '.*' but this solver keeps \['m'\]",
        ),
        ({"w": (1, {"m": ONE["m"], "v": ONE["m"]})}, r"'w' has states \['m', 'v'\] in '.*' but"),
        ({"w": (1, {})}, r"'w' has states \[\] in '.*' but this solver keeps \['m'\]"),
        ({"w": (1.5, ONE)}, r"step count 'w/t' in '.*' is float64 of shape \(\)"),
        ({"w": (np.ones(2, int), ONE)}, r"step count 'w/t' in '.*' is int64 of shape \(2,\)"),
        ({"w": (1, {"m": np.ones((1, 2))})}, r"state 'm' of 'w' has shape \(1, 2\)"),
        ({"w": (1, {"m": np.ones((2, 1), complex)})}, "'w/m' of '.*' has dtype complex128"),
    ],
)
def test_a_file_of_another_solver_or_network_changes_nothing(tmp_path, states, text):
    nnabla_file(tmp_path / "s.h5", states)
    solver = trained(S.Momentum(), parameters("w"), seed=1)
    before = plain(solver.get_states())
    with pytest.raises(SolverError, match=text):
        solver.load_states(tmp_path / "s.h5")
    assert_equal(plain(solver.get_states()), before)


def test_a_file_of_parameters_is_not_one_of_states(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["affine/W"] = np.ones((2, 1))
    with pytest.raises(SolverError, match=r"'affine/t' in '.*' is missing .*solver states"):
        load_states(tmp_path / "s.h5", ["affine"], ("W",))


@both_formats
def test_states_cannot_be_saved_or_loaded_before_parameters_are_set(tmp_path, ending):
    trained(S.Momentum(), parameters("w"), seed=1).save_states(tmp_path / f"s{ending}")
    before = (tmp_path / f"s{ending}").read_bytes()
    with pytest.raises(SolverError, match=r"\[save_states\].*call set_parameters first"):
        S.Momentum().save_states(tmp_path / f"s{ending}")
    assert (tmp_path / f"s{ending}").read_bytes() == before
    with pytest.raises(SolverError, match=r"\[load_states\].*call set_parameters first"):
        S.Momentum().load_states(tmp_path / f"s{ending}")


def test_a_parameter_named_as_a_state_above_it_is_refused(tmp_path):
    """'a' keeps its state m where the parameter 'a/m' has its group."""
    solver = trained(S.Momentum(), parameters("a", "a/m"), seed=1)
    with pytest.raises(SolverError, match=r"\[save_states\] 'a/m' and 'a/m/t' cannot be in one"):
        solver.save_states(tmp_path / "s.h5")
    assert os.listdir(tmp_path) == []


def test_what_is_loaded_shares_no_memory_with_what_was_saved(tmp_path):
    state = SolverState({"m": nn.Variable((2,))}, 4)
    state.pstate["m"].d = 1
    save_states({"w": state}, tmp_path / "s.safetensors")
    loaded = load_states(tmp_path / "s.safetensors", {"w": None}, ("m",))
    loaded["w"].pstate["m"].d[...] = 2
    assert state.pstate["m"].d.tolist() == [1, 1]


def test_a_parameter_back_in_its_slab_brings_its_states_along():
    """Its dtype was changed by hand, so that it was registered outside of the slab."""
    first, second = parameters("a", "b").values()
    first.d = first.d.astype(np.float64)
    solver = S.Momentum(lr=1, momentum=1)
    solver.set_parameters({"a": first, "b": second})
    first.d = first.d.astype(np.float32)
    for variable in (first, second):
        variable.g = 1
    solver.update()
    solver.update()
    np.testing.assert_array_equal(solver.get_states()["a"].pstate["m"].d, np.full(first.shape, 2))
    np.testing.assert_array_equal(first.d, np.full(first.shape, 1 - 1 - 2))
