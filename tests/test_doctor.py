"""`python -m distnn.doctor` tells what is there, and survives what is broken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from distnn import doctor

ROOT = Path(__file__).parent.parent


def run(**environment):
    """The report and its exit status."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "DISTNN_"))}
    done = subprocess.run(
        [sys.executable, "-m", "distnn.doctor"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**clean, **environment},
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout, done.returncode


def package(folder, name, text):
    """A package of this name that is found before the real one."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)


def test_it_tells_what_is_there():
    report, status = run()
    assert status == 0
    for name, text in (
        ("Python", sys.version.split()[0]),
        ("NumPy", np.__version__),
        ("BLAS of NumPy", ""),
        ("cores", "for this process"),
        ("Numba", ""),
        ("NVIDIA driver", ""),
        ("CuPy", ""),
        ("mpi4py", ""),
    ):
        (line,) = [x for x in report.split("\n") if x[2:].startswith(name + " ")]
        assert text in line
    assert "Training on the CPU works" in report


@pytest.mark.parametrize(
    "text",
    ["raise RuntimeError('out of order')", "import os; os._exit(11)", "import os; os.abort()"],
)
def test_broken_libraries_do_not_end_it(tmp_path, text):
    package(tmp_path, "cupy", text)
    package(tmp_path, "mpi4py", text)
    report, status = run(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert status == 0
    lines = report.split("\n")
    assert any("CuPy" in line and line.startswith("!") for line in lines)
    assert "pip install 'distnn[cuda13]'" in report
    assert "Training on the CPU works" in report


def test_what_is_missing_comes_with_its_pip_command(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.main() == 0
    report = capsys.readouterr().out
    for text in (
        "for GPUs: pip install 'distnn[cuda13]'",
        "for fast convolutions: pip install 'distnn[cuda13]'",
        "for several processes: pip install 'distnn[mpi]'",
        "pip install 'distnn[io]'",
    ):
        assert text in report


def test_numba_is_described(monkeypatch):
    monkeypatch.setattr("distnn.kernels.numba_problem", lambda: "Numba is not installed")
    (line,) = [f for f in doctor._base() if f.name == "Numba"]
    assert (line.text, line.good) == ("not installed", False)
    assert "pip install 'distnn[cpu]'" in line.advice
    monkeypatch.setattr("distnn.kernels.numba_problem", lambda: None)
    monkeypatch.setattr("distnn.kernels.get_cpu_kernels", lambda: "numba")
    monkeypatch.setattr(doctor, "_version", lambda name: "0.68.1")
    (line,) = [f for f in doctor._base() if f.name == "Numba"]
    assert line.text == "0.68.1; functions on the CPU use Numba's kernels"


def test_an_older_driver_gets_the_extra_that_it_can_run(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "driver_version", lambda: "550.54.15")
    monkeypatch.setattr(doctor, "count_gpus", lambda: 2)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    doctor.main()
    report = capsys.readouterr().out
    assert "550.54.15, which shows 2 GPUs" in report
    assert "for GPUs: pip install 'distnn[cuda12]'" in report


def test_gpus_and_their_libraries_are_listed(monkeypatch, capsys):
    facts = {
        "cupy": "14.2.0",
        "runtime": "13.0",
        "driver": "13.0",
        "compiler": "13.0",
        "cublas": {"error": "ImportError: libcublas.so.13"},
        "nccl": "2.28.9",
        "cudnn": "9.19.0",
        "devices": [
            {"name": "NVIDIA H200", "capability": "9.0", "free": 130 << 30, "total": 140 << 30}
        ],
    }
    monkeypatch.setattr(doctor, "_ask", lambda module: facts)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: SimpleNamespace())
    lines = [str(finding) for finding in doctor._gpu()]
    report = "\n".join(lines)
    assert "NVIDIA H200, compute capability 9.0, 130.0 of 140.0 GiB free" in report
    assert "! cuBLAS            ImportError: libcublas.so.13\n" in report
    assert any("NCCL" in line and "2.28.9" in line for line in lines)


@pytest.mark.parametrize("aware", [True, False, None])
def test_an_mpi_is_described(monkeypatch, aware):
    facts = {"library": "Open MPI v5.0.11", "threads": "single", "cuda_aware": aware}
    monkeypatch.setattr(doctor, "_ask", lambda module: facts)
    monkeypatch.setattr(doctor, "_version", lambda name: "4.1.2")
    report = "\n".join(str(finding) for finding in doctor._mpi())
    assert "Open MPI v5.0.11" in report
    assert "! thread level      single" in report
    assert {True: "yes;", False: "no;", None: "it does not say;"}[aware] in report


def test_the_status_tells_whether_the_cpu_trains(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_SECTIONS", ())
    monkeypatch.setattr("distnn.solvers.Sgd", lambda rate: SimpleNamespace(
        set_parameters=lambda p: None, zero_grad=lambda: None, update=lambda: None))  # fmt: skip
    assert doctor.main() == 1
    assert "Training on the CPU does not work: a step gave" in capsys.readouterr().out


def test_a_section_that_fails_is_a_line_of_the_report(monkeypatch, capsys):
    def section():
        yield doctor.Finding("first", "fine")
        raise OSError("no such thing")

    monkeypatch.setattr(doctor, "_SECTIONS", (("Things", section),))
    assert doctor.main() == 0
    report = capsys.readouterr().out
    assert "  first             fine" in report
    assert "! Things            cannot be looked at: OSError: no such thing" in report
