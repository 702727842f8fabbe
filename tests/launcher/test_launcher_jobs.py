"""Whole jobs under a real mpirun: what ranks are given, and what is printed."""

from __future__ import annotations

import json
import os
import re

import pytest
from launching import launch, needs_mpi, needs_proc, write

from distnn.launcher.errors import LaunchError
from distnn.launcher.mpi import find_mpirun, mpi_of_mpi4py

pytestmark = [needs_mpi, needs_proc]


def test_output_of_every_rank_carries_its_number_and_keeps_its_stream(tmp_path):
    write(
        tmp_path,
        """
        import json, os, sys
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
        names = ("DISTNN_NUM_THREADS", "OMP_NUM_THREADS", "DISTNN_LAUNCHER", "A")
        print(json.dumps({
            "size": comm.size, "argv": sys.argv, "name": __name__, "file": __file__,
            "path": sys.path[0], "cores": sorted(os.sched_getaffinity(0)),
            "stdin": sys.stdin.read(),
            "distnn": "distnn" in sys.modules, **{name: os.environ.get(name) for name in names},
        }))
        print("to stderr, rank", comm.rank, file=sys.stderr)
        sys.exit(0)
        """,
    )
    ranks = min(2, len(os.sched_getaffinity(0)))
    finished = launch(*("-n", str(ranks), "--env", "A=b c", "program.py", "-n", "7"), cwd=tmp_path)
    assert finished.status == 0, finished.err
    lines = sorted(finished.out.splitlines())
    assert [line[:5] for line in lines] == [f"[r{rank}] " for rank in range(ranks)]
    taken: set[int] = set()
    for line in lines:
        facts = json.loads(line[5:])
        cores = facts.pop("cores")
        assert not taken & set(cores)  # no core belongs to two ranks
        taken |= set(cores)
        threads = facts.pop("DISTNN_NUM_THREADS")
        assert facts == {
            "size": ranks,
            "argv": ["program.py", "-n", "7"],
            "name": "__main__",
            "file": str(tmp_path / "program.py"),
            "path": str(tmp_path),
            "stdin": "",
            "distnn": False,
            "OMP_NUM_THREADS": threads,
            "DISTNN_LAUNCHER": None,
            "A": "b c",
        }
        assert 1 <= int(threads) <= len(cores)
    expected = [f"[r{rank}] to stderr, rank {rank}" for rank in range(ranks)]
    assert sorted(finished.err.splitlines()) == expected
    assert not finished.survivors()


def test_every_rank_writes_its_log_and_only_rank_0_is_shown_when_asked_for(tmp_path):
    write(
        tmp_path,
        """
        import os, sys
        rank = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK"))
        print("out", rank)
        print("err", rank, file=sys.stderr)
        """,
    )
    finished = launch("-n", "2", "--log-dir", "a/b", "--tee", "0", "program.py", cwd=tmp_path)
    assert (finished.status, finished.out, finished.err) == (0, "[r0] out 0\n", "[r0] err 0\n")
    assert sorted(path.name for path in (tmp_path / "a/b").iterdir()) == [
        "rank-0.log",
        "rank-1.log",
    ]
    for rank in range(2):
        lines = (tmp_path / f"a/b/rank-{rank}.log").read_text().splitlines()
        assert sorted(lines) == [f"err {rank}", f"out {rank}"]


def test_a_module_runs_and_its_failure_is_reported_where_nothing_is_shown(tmp_path):
    (tmp_path / "package").mkdir()
    write(tmp_path / "package", "", "__init__.py")
    write(
        tmp_path / "package",
        """
        import sys
        assert __name__ == "__main__" and __spec__.name == "package.train"
        raise SystemExit(f"{sys.argv[1:]} {sys.path[0]}")
        """,
        "train.py",
    )
    finished = launch("-n", "1", "--tee", "none", "-m", "package.train", "--x", cwd=tmp_path)
    assert finished.status == 1
    assert finished.out == ""
    assert finished.err.splitlines()[-1] == f"['--x'] {tmp_path}"


def test_lines_of_different_ranks_are_never_mixed(tmp_path):
    write(
        tmp_path,
        """
        import os, sys
        rank = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK"))
        for length in range(3000):
            print(rank * length, "end")
        print(rank * 300_000, end="")
        """,
    )
    finished = launch("-n", "3", "program.py", cwd=tmp_path)
    assert finished.status == 0, finished.err
    by_rank: dict[str, list[str]] = {"0": [], "1": [], "2": []}
    for line in finished.out.splitlines():
        rank, rest = re.fullmatch(r"\[r(\d)\] (.*)", line).groups()
        by_rank[rank].append(rest)
    for rank, lines in by_rank.items():
        expected = [f"{rank * length} end" for length in range(3000)]
        assert lines == [*expected, rank * 300_000]


_VISIBLE = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'))\n"


def test_ranks_share_out_the_gpus_that_are_visible(tmp_path):
    write(tmp_path, _VISIBLE)
    finished = launch("-n", "2", "program.py", cwd=tmp_path, CUDA_VISIBLE_DEVICES="5,3")
    assert sorted(finished.out.splitlines()) == ["[r0] 5", "[r1] 3"]


def test_too_few_gpus_end_the_job_before_any_program_runs(tmp_path):
    write(tmp_path, _VISIBLE)
    finished = launch("-n", "2", "program.py", cwd=tmp_path, CUDA_VISIBLE_DEVICES="5")
    assert finished.status == 2
    assert finished.out == ""
    assert "2 ranks on this node, but CUDA_VISIBLE_DEVICES=5 lists 1 GPU(s)" in finished.err


def test_what_mpirun_says_about_a_job_it_cannot_start_is_passed_on(tmp_path):
    write(tmp_path, "")
    finished = launch("-n", "1", "--mpi-args=--no-such-option", "program.py", cwd=tmp_path)
    assert finished.status != 0
    assert "no-such-option" in finished.err
    assert re.fullmatch(
        r"\[distnn-launch\] mpirun ended \(exit status \d+\) before rank 0 had finished",
        finished.err.splitlines()[-1],
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-n", "2", "missing.py"], "[distnn-launch] script 'missing.py' does not exist in"),
        (["-n", "0", "program.py"], "[distnn-launch] -n is 0; pass the number of ranks, 1 or more"),
        (["-n", "2", "--foo", "program.py"], "distnn-launch: error: unrecognized arguments: --foo"),
    ],
)
def test_a_command_line_that_makes_no_sense_ends_with_status_2(arguments, message, tmp_path):
    write(tmp_path, "")
    finished = launch(*arguments, cwd=tmp_path)
    assert finished.status == 2
    assert finished.out == ""
    assert finished.err.splitlines()[-1].startswith(message)


def test_mpirun_is_found_without_path_or_missed_with_a_clear_word(tmp_path, monkeypatch):
    write(tmp_path, "print('ran')")
    finished = launch("-n", "1", "program.py", cwd=tmp_path, PATH="/nonexistent")
    monkeypatch.setenv("PATH", "/nonexistent")
    try:
        find_mpirun(mpi_of_mpi4py())  # beside mpi4py's library or beside Python
        expected = (0, "[r0] ran\n", "")
    except LaunchError as error:
        expected = (2, "", f"[distnn-launch] {error}\n")
    assert (finished.status, finished.out, finished.err) == expected


def test_a_dry_run_prints_the_command_and_starts_nothing(tmp_path):
    write(tmp_path, "open('ran', 'w')")
    finished = launch("-n", "2", "--dry-run", "program.py", "a b", cwd=tmp_path)
    assert finished.status == 0
    assert re.fullmatch(r"\S+ .*-n 2 .*start.py --bind auto program.py 'a b'\n", finished.out)
    assert not (tmp_path / "ran").exists()
