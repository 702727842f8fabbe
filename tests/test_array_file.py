"""Files of named arrays: what parameter files and solver-state files share."""

import io
import os
import sys

import numpy as np
import pytest

import distnn as nn
from distnn.array_file import ArrayFile
from distnn.errors import MissingExtraError, ParameterError, SolverError
from distnn.parameter_file import load_parameters, save_parameters
from distnn.solver_file import load_states, save_states
from distnn.solvers.solver import SolverState

pytest.importorskip("h5py", reason="files need distnn[io]")
pytest.importorskip("safetensors", reason="files need distnn[io]")

ENDINGS = [".h5", ".safetensors"]
both_formats = pytest.mark.parametrize("ending", ENDINGS)


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
