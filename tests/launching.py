"""Runs `distnn-launch` for real, and finds what it leaves behind."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

needs_mpi = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None,
    reason="mpi4py is not installed: pip install distnn[mpi]",
)
needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux's /proc")

# Open MPI's search for networks takes a second of each start; these jobs stay on this machine.
_QUICK = ("OMPI_MCA_pml=ob1", "OMPI_MCA_btl=self,sm")
_MARK = "DISTNN_LAUNCHER_TEST"


@dataclass
class Finished:
    """A launcher that has ended."""

    status: int
    out: str
    err: str
    ended: float  # seconds since the epoch
    mark: str

    def survivors(self) -> list[str]:
        """Commands of processes, of whatever parent, that this launcher or its ranks started."""
        return survivors(self.mark)


def survivors(mark: str) -> list[str]:
    """Commands of the running processes that carry `mark` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def environment(changes: dict[str, str | None]) -> tuple[dict[str, str], str]:
    """A clean environment with `changes` (None removes), and the mark in it."""
    mark = f"{_MARK}={uuid.uuid4().hex}"
    unwanted = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "SLURM_", "OMP_", "DISTNN_", "CUDA_")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
    clean.update(item.split("=", 1) for item in (mark, *_QUICK))
    for name, value in changes.items():
        clean.pop(name, None)
        if value is not None:
            clean[name] = value
    return clean, mark


def start(*arguments: str, cwd: Path, **changes: str | None) -> tuple[subprocess.Popen, str]:
    """Start `distnn-launch` in `cwd`; returns the process and the mark of all that it starts."""
    clean, mark = environment(changes)
    process = subprocess.Popen(
        [sys.executable, "-m", "distnn.launcher", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=clean,
    )
    return process, mark


def finish(process: subprocess.Popen, mark: str, timeout: float = 40) -> Finished:
    """Wait for a launcher; one that does not end fails the test, and is killed."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"the launcher did not end within {timeout} s; stdout:\n{out}\nstderr:\n{err}")
    return Finished(process.returncode, out, err, time.time(), mark)


def launch(*arguments: str, cwd: Path, **changes: str | None) -> Finished:
    """Run `distnn-launch` with `arguments` in the folder `cwd`."""
    return finish(*start(*arguments, cwd=cwd, **changes))


def wait_for(path: Path, timeout: float = 20) -> None:
    """Wait until a rank has made the file `path`."""
    end = time.monotonic() + timeout
    while not path.exists():
        assert time.monotonic() < end, f"no rank made {path.name} within {timeout} s"
        time.sleep(0.02)


def write(folder: Path, program: str, name: str = "program.py") -> str:
    """Write a program into `folder`; returns its name."""
    (folder / name).write_text(textwrap.dedent(program))
    return name
