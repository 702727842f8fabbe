"""Solver-state files, and what they share with parameter files."""

import io
import logging
import os
import sys

import numpy as np
import pytest

import distnn as nn
import distnn.solvers as S
from distnn.context import World, world_scope
from distnn.errors import MissingExtraError, ParameterError, SolverError
from distnn.parameter import get_parameter_or_create
from distnn.parameter_file import ArrayFile, load_parameters, save_parameters
from distnn.solver_file import load_states, save_states
from distnn.solvers.solver import SolverState

h5py = pytest.importorskip("h5py", reason="solver-state files need distnn[io]")
pytest.importorskip("safetensors", reason="solver-state files need distnn[io]")
from safetensors.numpy import load_file  # noqa: E402 (after the check that it is there)

ENDINGS = [".h5", ".safetensors"]
both_formats = pytest.mark.parametrize("ending", ENDINGS)


@pytest.fixture(autouse=True)
def _own_world():
    with world_scope(World()):
        yield


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
@pytest.mark.parametrize("kind", [S.Sgd, S.Momentum, S.Adam])
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
    nnabla_file(tmp_path / "s.h5", {"w": (t, {"m": np.ones((2, 1))})})
    loaded = load_states(tmp_path / "s.h5", ["w"], ("m",))
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


# -- what parameter files and solver-state files share ----------------------------------------


def call(function, path):
    """One of the four functions, with something to do."""
    w = nn.Variable((2,))
    if function == "save_parameters":
        save_parameters(path, {"w": w})
    elif function == "load_parameters":
        load_parameters(path)
    elif function == "save_states":
        save_states({"w": SolverState({"m": w}, 1)}, path)
    else:
        load_states(path, ["w"], ["m"])


every_function = pytest.mark.parametrize(
    "function", ["save_parameters", "load_parameters", "save_states", "load_states"]
)
KNOWN = r"known formats are \.h5 and \.safetensors"
NNABLA = rf"load it in NNabla and save it there as \.h5; {KNOWN}"


@every_function
@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("x.npz", rf"'x\.npz' ends in '\.npz'; {KNOWN}"),
        ("x.h5.bak", KNOWN),
        ("x", KNOWN),
        *((f"x{ending}", NNABLA) for ending in (".protobuf", ".nnp", ".nntxt", ".prototxt")),
        (io.BytesIO(), f"extension of the open file is .*{KNOWN}"),
        (io.StringIO(), "the open file is a text file; open it in binary mode"),
        (None, "path is NoneType; pass a str"),
        (["x.h5"], "path is list; pass a str"),
        ("no_such_directory/x.h5", "'no_such_directory/x.h5' is missing|the directory of 'no_such"),
    ],
)
def test_a_path_that_cannot_be_used_is_refused(function, path, text):
    with pytest.raises((ParameterError, SolverError), match=rf"^\[{function}\] .*({text})") as info:
        call(function, path)
    assert info.type is (ParameterError if "parameters" in function else SolverError)


@every_function
@both_formats
def test_a_directory_is_refused(tmp_path, function, ending):
    (tmp_path / f"x{ending}").mkdir()
    with pytest.raises((ParameterError, SolverError), match=f"x{ending}' is a directory"):
        call(function, tmp_path / f"x{ending}")


@pytest.mark.parametrize("kind", ["parameters", "states"])
@both_formats
@pytest.mark.parametrize("damage", ["missing", "empty", "cut off", "first bytes", "other format"])
def test_a_broken_file_is_named(tmp_path, kind, ending, damage):
    path = tmp_path / f"x{ending}"
    call(f"save_{kind}", path)
    content = path.read_bytes()
    other = tmp_path / f"x{next(e for e in ENDINGS if e != ending)}"
    call(f"save_{kind}", other)
    changed = {"empty": b"", "cut off": content[:-4], "first bytes": content[:20]}
    changed["other format"] = other.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(changed[damage])
    text = "is missing" if damage == "missing" else f"cannot be read as a {ending} file: .*cut off"
    with pytest.raises((ParameterError, SolverError), match=rf"load_{kind}\] '.*x{ending}' {text}"):
        call(f"load_{kind}", path)


@every_function
@both_formats
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, function, ending):
    path = tmp_path / f"x{ending}"
    path.write_bytes(b"kept")
    package = {".h5": "h5py", ".safetensors": "safetensors"}[ending]
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, module, None)
    text = rf"\[{function}\] {ending} files need {package}.*pip install distnn\[io\]"
    with pytest.raises(MissingExtraError, match=text):
        call(function, path)
    assert path.read_bytes() == b"kept"


@both_formats
def test_memory_that_is_not_contiguous_is_saved_in_its_order(tmp_path, ending):
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
    file = ArrayFile("test", ParameterError, tmp_path / f"x{ending}")
    file.write({"w": values}, {})
    assert file.read()[0]["w"].tolist() == [[0, 4, 8], [2, 6, 10]]


@both_formats
def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path, ending):
    resource = pytest.importorskip("resource", reason="limits of file size are POSIX")
    path = tmp_path / f"x{ending}"
    path.write_bytes(b"a good file")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            ArrayFile("test", ParameterError, path).write({"w": np.ones(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"a good file"
    assert os.listdir(tmp_path) == [path.name]


@both_formats
def test_a_new_file_has_usual_permissions_and_a_link_stays_a_link(tmp_path, ending):
    (tmp_path / "usual").write_bytes(b"")
    link, path = tmp_path / f"latest{ending}", tmp_path / f"epoch_1{ending}"
    link.symlink_to(path)
    call("save_states", link)
    assert link.is_symlink()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode
