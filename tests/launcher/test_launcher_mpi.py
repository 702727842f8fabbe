"""Finding mpi4py's MPI and the mpirun that belongs to it."""

from __future__ import annotations

import os
import sys

import pytest
from launching import needs_mpi

from distnn.launcher.errors import LaunchError
from distnn.launcher.mpi import Mpi, find_mpirun, mpi_of_mpi4py, vendor_of

SAYS = {
    "Open MPI": "mpirun (Open MPI) 5.0.11",
    "MPICH": "HYDRA build details:\n    Version: 4.2.0",
    "Intel MPI": "Intel(R) MPI Library for Linux* OS, Version 2021.13 Build 20240515",
}


def make_mpirun(folder, vendor, name="mpirun"):
    """An mpirun that says it is of `vendor`; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\ncat <<'end'\n{SAYS[vendor]}\nend\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A Python beside which and a PATH on which there is no mpirun, but there is a shell."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "cat"):
        (tools / name).symlink_to(os.path.realpath(f"/bin/{name}"))
    monkeypatch.setenv("PATH", str(tools))
    return str(tmp_path / "python" / "bin" / "python")


@pytest.mark.parametrize(
    ("text", "vendor"),
    [
        *((text, vendor) for vendor, text in SAYS.items()),
        ("Open MPI v4.1.4, package: Debian OpenMPI, ident: 4.1.4", "Open MPI"),
        ("MPICH Version:      5.0.2\nMPICH Release date: ...", "MPICH"),
        ("MVAPICH2 Version      : 2.3.7", "MPICH"),
        ("Intel(R) MPI Library 2021.18.1 for Linux* OS", "Intel MPI"),
        ("MPI VERSION    : CRAY MPICH version 8.1.25", None),
        ("something else", None),
    ],
)
def test_vendors_are_known_by_what_library_and_mpirun_say(text, vendor):
    assert vendor_of(text) == vendor


@pytest.mark.parametrize("vendor", SAYS)
@pytest.mark.parametrize("lib", ["lib", "lib/x86_64-linux-gnu/openmpi/lib"])
def test_the_mpirun_beside_the_library_comes_before_that_on_the_path(
    vendor, lib, tmp_path, nowhere, monkeypatch
):
    right = make_mpirun(tmp_path / "mpi" / "bin", vendor)
    make_mpirun(tmp_path / "path", vendor)
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:{os.environ['PATH']}")
    library = str(tmp_path / "mpi" / lib / "libmpi.so.40")
    assert find_mpirun(Mpi(vendor, vendor, library), nowhere) == right


def test_the_mpirun_beside_python_comes_before_that_on_the_path(tmp_path, nowhere, monkeypatch):
    right = make_mpirun(tmp_path / "python" / "bin", "Open MPI")
    make_mpirun(tmp_path / "path", "Open MPI")
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:{os.environ['PATH']}")
    assert find_mpirun(Mpi("Open MPI", "", "/elsewhere/lib/libmpi.so"), nowhere) == right


def test_an_mpirun_of_another_mpi_is_passed_over(tmp_path, nowhere, monkeypatch):
    make_mpirun(tmp_path / "mpi" / "bin", "MPICH")
    right = make_mpirun(tmp_path / "path", "Open MPI", "mpirun.openmpi")
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:{os.environ['PATH']}")
    library = str(tmp_path / "mpi" / "lib" / "libmpi.so")
    assert find_mpirun(Mpi("Open MPI", "", library), nowhere) == right


def test_only_an_mpirun_of_another_mpi_is_an_error_that_names_both(tmp_path, nowhere):
    other = make_mpirun(tmp_path / "mpi" / "bin", "MPICH")
    mine = Mpi("Open MPI", "Open MPI v5.0.11", str(tmp_path / "mpi" / "lib" / "libmpi.so"))
    message = f"mpi4py uses 'Open MPI v5.0.11'.*{other} is of MPICH .*'HYDRA build details:'"
    with pytest.raises(LaunchError, match=message):
        find_mpirun(mine, nowhere)


def test_an_mpirun_that_the_user_names_is_checked_too(tmp_path, nowhere):
    right = make_mpirun(tmp_path / "a", "MPICH")
    wrong = make_mpirun(tmp_path / "b", "Intel MPI")
    assert find_mpirun(Mpi("MPICH", "", ""), nowhere, given=right) == right
    with pytest.raises(LaunchError, match="is of Intel MPI"):
        find_mpirun(Mpi("MPICH", "", ""), nowhere, given=wrong)
    with pytest.raises(LaunchError, match="unknown MPI"):
        find_mpirun(Mpi("MPICH", "", ""), nowhere, given=str(tmp_path / "missing"))


def test_no_mpirun_at_all_says_where_it_was_looked_for(nowhere):
    mine = Mpi("Open MPI", "Open MPI v5.0.11", "/elsewhere/lib/libmpi.so")
    with pytest.raises(LaunchError, match=r"no mpirun for mpi4py's 'Open MPI v5.0.11'.*--mpirun"):
        find_mpirun(mine, nowhere)


@needs_mpi
def test_mpi4py_is_asked_without_being_loaded_here():
    mpi = mpi_of_mpi4py()
    assert mpi.vendor in SAYS
    assert "\n" not in mpi.version
    assert not any(name.startswith("mpi4py.MPI") for name in sys.modules)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise ModuleNotFoundError('no mpi4py')", r"not installed.*pip install distnn\[mpi\].*"),
        ("raise ModuleNotFoundError('no mpi4py')", "on a cluster.*pip install mpi4py"),
        ("class rc: pass", "finds no MPI library"),
        ("import os; os._exit(3)", "ended .* with status 3"),
    ],
)
def test_what_is_missing_is_named_with_what_to_install(source, message, tmp_path, monkeypatch):
    (tmp_path / "mpi4py.py").write_text(source + "\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(LaunchError, match=message):
        mpi_of_mpi4py()
