"""The files in launch/: they run as they are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launching import environment, needs_mpi, write

LAUNCH = Path(__file__).parents[2] / "launch"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

_WHO = """
    from mpi4py import MPI
    import sys
    print("rank", MPI.COMM_WORLD.rank, "of", MPI.COMM_WORLD.size, sys.argv[1:])
"""


def bash(*arguments, cwd=None, **changes):
    changes = {"PYTHON": sys.executable, **changes}
    folder = os.path.dirname(sys.executable)
    changes.setdefault("PATH", f"{folder}:{os.environ['PATH']}")
    return subprocess.run(
        ["bash", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(changes)[0],
        timeout=40,
    )


def has_open_mpi() -> bool:
    folder = os.path.dirname(sys.executable)
    mpirun = shutil.which("mpirun", path=f"{folder}:{os.environ['PATH']}")
    if mpirun is None:
        return False
    run = subprocess.run([mpirun, "--version"], capture_output=True, text=True)
    return "Open MPI" in run.stdout


@pytest.mark.parametrize("name", ["mpirun.sh", "slurm.sbatch"])
def test_scripts_are_valid_bash(name):
    assert bash("-n", LAUNCH / name).returncode == 0


@pytest.mark.parametrize("name", ["mpirun.sh", "slurm.sbatch", "hostfile"])
def test_every_recipe_says_at_its_top_how_to_use_it(name):
    top = (LAUNCH / name).read_text().splitlines()[:4]
    assert any("How to use it" in line for line in top)


def test_the_hostfile_is_in_open_mpis_format():
    lines = (LAUNCH / "hostfile").read_text().splitlines()
    hosts = [line for line in lines if not line.startswith("#")]
    assert hosts
    assert all(re.fullmatch(r"\w+ slots=\d+", line) for line in hosts)


@needs_mpi
@pytest.mark.skipif(not has_open_mpi(), reason="launch/mpirun.sh is for Open MPI")
@pytest.mark.parametrize("where", ["container", "nodes"])
def test_mpirun_recipes_start_the_ranks(where, tmp_path):
    if where == "container" and os.geteuid() != 0:
        pytest.skip("the recipe for containers runs as root")
    write(tmp_path, _WHO)
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    more = {} if os.geteuid() != 0 else {"MPIRUN_ARGS": "--allow-run-as-root"}
    run = bash(
        *(LAUNCH / "mpirun.sh", where, 2, "program.py", "--lr", "0.1"),
        **{"cwd": tmp_path, "HOSTFILE": "hosts", **(more if where == "nodes" else {})},
    )
    expected = [f"rank {rank} of 2 ['--lr', '0.1']" for rank in range(2)]
    assert sorted(run.stdout.splitlines()) == expected, run.stderr


@pytest.mark.parametrize("arguments", [[], ["nowhere", "2", "program.py"]])
def test_the_mpirun_script_refuses_what_it_does_not_know(arguments):
    run = bash(LAUNCH / "mpirun.sh", *arguments)
    assert run.returncode == 2
    assert "one-node" in run.stderr


@needs_mpi
def test_the_slurm_file_starts_as_many_ranks_as_slurm_has_tasks(tmp_path):
    write(tmp_path, _WHO)
    run = bash(LAUNCH / "slurm.sbatch", "program.py", "x", cwd=tmp_path, SLURM_NTASKS="2")
    expected = [f"[r{rank}] rank {rank} of 2 ['x']" for rank in range(2)]
    assert sorted(run.stdout.splitlines()) == expected, run.stderr


def make_srun(folder: Path, plugins: str) -> str:
    """An srun that lists `plugins` and runs one task for all; returns a PATH with it."""
    text = f"""\
        #!/bin/sh
        if [ "$1" = --mpi=list ]; then echo "{plugins}"; exit; fi
        while case "$1" in -*) true;; *) false;; esac; do shift; done
        exec "$@"
    """
    write(folder, text, "srun")
    (folder / "srun").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_the_slurm_file_refuses_an_srun_without_pmix(tmp_path):
    path = make_srun(tmp_path, "MPI plugin types are... none pmi2")
    run = bash(LAUNCH / "slurm.sbatch", "x.py", PATH=path, START="srun", SLURM_NTASKS="2")
    assert run.returncode == 1
    assert "srun on this cluster has no --mpi=pmix; use START=distnn-launch" in run.stderr


@needs_mpi
def test_the_slurm_file_refuses_an_srun_that_starts_separate_programs(tmp_path):
    path = make_srun(tmp_path, "MPI plugin types are... none pmi2 pmix")
    run = bash(
        *(LAUNCH / "slurm.sbatch", "x.py"),
        PATH=path,
        START="srun",
        SLURM_NTASKS="2",
        # A program alone leaves its segment of shared memory behind, in /dev/shm by default.
        OMPI_MCA_btl_sm_backing_directory=str(tmp_path),
    )
    assert run.returncode == 1
    assert "srun has started 2 tasks, but MPI sees 1" in run.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "SLURM_NTASKS is not set"),
        (
            {"SLURM_NTASKS": "2", "START": "ssh"},
            "START is 'ssh'; use distnn-launch, mpirun or srun",
        ),
    ],
)
def test_the_slurm_file_says_what_it_lacks(changes, message):
    run = bash(LAUNCH / "slurm.sbatch", "x.py", **changes)
    assert run.returncode == 2
    assert message in run.stderr
