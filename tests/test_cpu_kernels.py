"""Which kernels the CPU uses, and that both sorts live side by side."""

from __future__ import annotations

import importlib.metadata
import inspect
import logging
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F
from distnn import kernels
from distnn.errors import ArgumentError, MissingExtraError
from distnn.function import Function
from distnn.twin import twin_class

numba = pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")


def functions(cls=Function):
    for sub in cls.__subclasses__():
        yield sub
        yield from functions(sub)


def parameters(method):
    return [(p.name, p.kind) for p in inspect.signature(method).parameters.values()]


def test_every_twin_has_the_signatures_of_its_function():
    for function in functions():
        twin = twin_class(function, "cpu")
        if twin is not None:
            assert parameters(twin.forward) == parameters(function.forward), function
            assert hasattr(twin, "backward") == hasattr(function, "backward"), function
            if hasattr(twin, "backward"):
                assert parameters(twin.backward) == parameters(function.backward), function


def test_only_the_cpu_folder_imports_numba():
    root = pathlib.Path(nn.__file__).parent
    starts = ("import numba", "from numba", "from llvmlite", "import llvmlite")
    importers = {
        path.relative_to(root).parts[0]
        for path in root.rglob("*.py")
        if any(line.strip().startswith(starts) for line in path.read_text().splitlines())
    }
    assert importers == {"cpu"}


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    kept = {k: v for k, v in os.environ.items() if k not in ("DISTNN_CPU_KERNELS",)}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_import_and_small_functions_do_not_import_numba():
    code = """
import sys, numpy as np, distnn as nn, distnn.functions as F
nn.set_cpu_kernels("numba")
with nn.auto_forward():
    F.tanh(nn.Variable.from_numpy_array(np.ones((2, 2)))).d
assert "numba" not in sys.modules
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("value", ["", "numba", "numpy"])
def test_the_environment_chooses(value):
    done = run("import distnn as nn; print(nn.get_cpu_kernels())", DISTNN_CPU_KERNELS=value)
    assert done.stdout.strip() == (value or "numba"), done.stderr


def test_an_unknown_choice_is_named():
    with pytest.raises(ArgumentError, match=r"\[set_cpu_kernels\] kernels is 'fast'; use 'numba'"):
        nn.set_cpu_kernels("fast")
    done = run("import distnn as nn; nn.get_cpu_kernels()", DISTNN_CPU_KERNELS="fast")
    assert "[DISTNN_CPU_KERNELS] kernels is 'fast'" in done.stderr


@pytest.fixture
def undecided(monkeypatch):
    """As in a process in which nobody has asked for kernels."""
    before = nn.get_cpu_kernels()
    monkeypatch.delenv("DISTNN_CPU_KERNELS", raising=False)
    monkeypatch.setattr(kernels, "_chosen", None)
    monkeypatch.setattr(kernels, "_asked_for", False)
    yield
    monkeypatch.undo()
    nn.set_cpu_kernels(before)


def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)


@pytest.mark.parametrize(
    ("version", "problem"),
    [(missing, "Numba is not installed"), (lambda name: "0.59.1", "Numba 0.59.1 is too old")],
)
def test_without_numba_numpy_does_the_work_unless_numba_is_asked_for(
    undecided, monkeypatch, version, problem
):
    monkeypatch.setattr(importlib.metadata, "version", version)
    assert nn.get_cpu_kernels() == "numpy"
    with pytest.raises(MissingExtraError, match=rf"{problem}; pip install 'distnn\[cpu\]'"):
        nn.set_cpu_kernels("numba")
    assert nn.get_cpu_kernels() == "numpy"


@pytest.fixture
def broken(undecided, monkeypatch):
    """Numba is installed, but importing it fails, as beside a NumPy that it does not know."""

    def fail(name):
        raise ImportError("Numba needs NumPy 1.0 or less")

    kernels.compiler_loads.cache_clear()
    monkeypatch.setattr(kernels.importlib, "import_module", fail)
    yield
    kernels.compiler_loads.cache_clear()


def test_a_numba_that_cannot_be_imported_is_passed_over_with_a_warning(broken, caplog):
    assert nn.get_cpu_kernels() == "numba"
    with caplog.at_level(logging.WARNING, "distnn"):
        assert not kernels.compiler_loads()
    assert "Numba needs NumPy 1.0 or less" in caplog.text


def test_a_numba_that_was_asked_for_and_cannot_be_imported_is_an_error(broken):
    nn.set_cpu_kernels("numba")
    with pytest.raises(MissingExtraError, match="Numba needs NumPy"):
        kernels.compiler_loads()


@pytest.fixture
def restored():
    before = nn.get_cpu_kernels()
    yield
    nn.set_cpu_kernels(before)


def test_functions_keep_the_kernels_with_which_they_were_called(restored):
    x = nn.Variable.from_numpy_array(np.linspace(-1, 1, 4096), need_grad=True)
    found = {}
    for name in ("numpy", "numba", "numpy"):
        nn.set_cpu_kernels(name)
        y = F.tanh(x)
        assert y.parent.setup.backend.kernels == name
        found[name] = y
    nn.forward_all(list(found.values()))
    np.testing.assert_allclose(found["numba"].d, found["numpy"].d, rtol=1e-6)


# -- compiling, and keeping what was compiled -----------------------------------------------------

TRAIN = """
import logging, sys
logging.getLogger("distnn").setLevel(logging.DEBUG)
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
import numpy as np, distnn as nn, distnn.functions as F, distnn.solvers as S
nn.set_cpu_kernels("numba")
x = nn.Variable.from_numpy_array(np.linspace(-2, 2, 20000).astype("f"), need_grad=True)
solver = S.Momentum(0.1)
solver.set_parameters({"x": x})
y = F.sum(F.sigmoid(F.softmax(F.reshape(x, (200, 100)))))
y.forward()
y.backward()
solver.update()
print("sum", float(y.d))
"""
KERNELS = {"_softmax", "_softmax_gradient", "formula_sigmoid_x_", "formula_update_w_g_m"}


def compiled(done: subprocess.CompletedProcess) -> set[str]:
    """Names of the kernels that a program says it compiled."""
    assert done.returncode == 0, done.stderr
    assert "sum 100" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    return {words[2] for words in lines if words[:2] == ["compiled", "kernel"]}


def test_kernels_are_compiled_once_and_kept(tmp_path):
    first = run(TRAIN, NUMBA_CACHE_DIR=str(tmp_path))
    assert compiled(first) >= KERNELS
    assert first.stdout.count("distnn compiles kernels for this processor") == 1
    assert f"find them in {tmp_path}" in first.stdout
    later = run(TRAIN, NUMBA_CACHE_DIR=str(tmp_path))
    assert compiled(later) == set()
    assert "compile" not in later.stdout


def test_who_waits_for_the_compiler_is_told_without_asking(tmp_path):
    quiet = TRAIN.split("\n", 4)[4]  # no logging is set up
    assert "logging" not in quiet
    told = run(quiet, NUMBA_CACHE_DIR=str(tmp_path)).stderr
    assert "distnn compiles kernels for this processor, which takes some seconds" in told
    assert told.count("\n") == 1
    assert run(quiet, NUMBA_CACHE_DIR=str(tmp_path)).stderr == ""


def test_where_nothing_can_be_written_each_process_compiles(tmp_path):
    (tmp_path / "file").touch()
    done = run(TRAIN, NUMBA_CACHE_DIR=str(tmp_path / "file" / "folder"))
    assert compiled(done) >= KERNELS
    assert "compiled kernels are not kept" in done.stdout


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_without_leave_to_write_is_no_error(tmp_path):
    tmp_path.chmod(0o500)
    assert compiled(run(TRAIN, NUMBA_CACHE_DIR=str(tmp_path))) >= KERNELS


def test_a_disk_that_takes_nothing_any_more_is_no_error(tmp_path):
    """The folder is there when kernels are made, and gone when they are to be kept."""
    code = "import shutil, distnn.cpu.compiler as c; folder = c.cache_folder()\n"
    code += "shutil.rmtree(folder); folder.touch()\n"
    done = run(code + TRAIN, NUMBA_CACHE_DIR=str(tmp_path))
    assert compiled(done) >= KERNELS
    assert "kept" in done.stdout


def test_what_cannot_be_saved_is_told_and_forgotten(caplog):
    from distnn.cpu.compiler import _tolerant

    def save(*arguments):
        raise OSError("no space left on device")

    with caplog.at_level(logging.INFO, "distnn"):
        _tolerant(save)("signature", "code")
    assert "no space left on device" in caplog.text


def test_processes_that_start_together_share_the_folder(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "DISTNN_CPU_KERNELS": "numba"}
    programs = [
        subprocess.Popen([sys.executable, "-c", TRAIN], env=environment, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    outputs = [program.communicate(timeout=120)[0] for program in programs]
    for program, out in zip(programs, outputs, strict=True):
        assert program.returncode == 0
        assert b"sum 100" in out
