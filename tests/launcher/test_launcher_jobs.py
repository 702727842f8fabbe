"""Whole jobs under a real mpirun: what is printed, how they end, and what they leave behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import (
    environment,
    finish,
    launch,
    needs_mpi,
    needs_proc,
    start,
    survivors,
    wait_for,
    write,
)

from distnn.launcher.errors import LaunchError
from distnn.launcher.mpi import find_mpirun, mpi_of_mpi4py

pytestmark = [needs_mpi, needs_proc]

# What a job may take to be gone after its first failure, in seconds.
GONE = 5.0

# The rank named in argv[1] runs argv[2] while the others sit in a barrier. Each has a child of its
# own. With a third argument all of them are deaf to SIGTERM.
ONE_FAILS = """
    import ctypes, json, os, signal, sys, time
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    if sys.argv[3:]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        time.sleep(600)
    comm.Barrier()
    if comm.rank == int(sys.argv[1]):
        shared = os.environ.get("OMPI_MCA_btl_sm_backing_directory")
        assert shared is None or os.path.isdir(shared)
        with open("failing", "w") as file:
            json.dump({"time": time.time(), "shared": shared}, file)
        os.rename("failing", "failed")

        def fail():
            exec(sys.argv[2])

        fail()
    comm.Barrier()
    print("not reached")
"""


def assert_gone(finished, folder: Path) -> None:
    """Nothing of the job is left, and that was so soon after the rank failed."""
    failed = json.loads((folder / "failed").read_text())
    assert finished.ended - failed["time"] < GONE
    assert not finished.survivors()
    # Open MPI's segments are in this folder, also that of a rank 0 that was killed.
    assert failed["shared"] is None or not os.path.exists(failed["shared"])


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


def test_an_exception_in_one_rank_ends_all_and_its_traceback_is_the_last_output(tmp_path):
    write(tmp_path, ONE_FAILS)
    finished = launch("-n", "3", "program.py", "1", "raise KeyError('lost')", "deaf", cwd=tmp_path)
    assert_gone(finished, tmp_path)
    assert finished.status == 1
    assert "not reached" not in finished.out
    last = finished.err.partition("rank 1 failed first (exit status 1):\n")[2].splitlines()
    assert last[0] == "Traceback (most recent call last):"
    assert last[1].startswith(f'  File "{tmp_path}/program.py", line ')  # none of ours
    assert last[-1] == "KeyError: 'lost'"
    assert "[r1] KeyError: 'lost'\n" in finished.err


@pytest.mark.parametrize(
    ("end", "status", "header", "last"),
    [
        ("sys.exit(7)", 7, "exit status 7", r"SystemExit\(7\) was raised in .*line 1"),
        ("sys.exit('no data')", 1, "exit status 1", "no data"),
        ("os._exit(9)", 9, "exit status 9", "it left no traceback"),
        ("os.kill(os.getpid(), 9)", 137, "killed by SIGKILL, exit status 137", "it left no .*"),
        ("ctypes.string_at(0)", 139, "killed by SIGSEGV, exit status 139", "Extension modules.*"),
    ],
    ids=["sys.exit", "sys.exit with a text", "os._exit", "SIGKILL", "segmentation fault"],
)
def test_a_rank_that_ends_badly_in_any_way_is_reported(end, status, header, last, tmp_path):
    write(tmp_path, ONE_FAILS)
    finished = launch("-n", "2", "program.py", "0", end, cwd=tmp_path)
    assert_gone(finished, tmp_path)
    assert finished.status == status
    _, found, text = finished.err.partition(f"rank 0 failed first ({header}):\n")
    assert found, finished.err
    assert re.fullmatch(last, text.splitlines()[-1]), text
    assert ("Fatal Python error: Segmentation fault" in text) == (status == 139)


def test_a_rank_that_leaves_by_os_exit_0_does_not_leave_the_others_waiting(tmp_path):
    write(tmp_path, ONE_FAILS)
    finished = launch("-n", "2", "program.py", "1", "os._exit(0)", cwd=tmp_path)
    assert_gone(finished, tmp_path)
    assert finished.status == 1
    assert "it ended by os._exit(0) before the end of its program" in finished.err.splitlines()[-1]


def test_the_first_failure_is_reported_not_the_one_that_follows_from_it(tmp_path):
    write(
        tmp_path,
        """
        import os, signal, time

        def second(*_):
            raise RuntimeError("the second failure")

        if os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK")) == "0":
            signal.signal(signal.SIGTERM, second)
            open("ready", "w").close()
            time.sleep(60)
        while not os.path.exists("ready"):
            time.sleep(0.01)
        raise RuntimeError("the first failure")
        """,
    )
    finished = launch("-n", "2", "program.py", cwd=tmp_path)
    assert finished.status == 1
    assert "[r0] RuntimeError: the second failure" in finished.err
    assert finished.err.endswith("RuntimeError: the first failure\n")


def test_a_timeout_ends_the_job_and_says_who_had_not_finished_and_where_they_were(tmp_path):
    write(
        tmp_path,
        """
        import os, time

        def stuck():
            time.sleep(60)

        if os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK")) == "1":
            stuck()
        """,
    )
    begin = time.time()
    finished = launch("-n", "3", "--timeout", "3", "program.py", cwd=tmp_path)
    assert 3 < finished.ended - begin < 3 + GONE + 1
    assert finished.status == 124
    last = "[distnn-launch] timeout: 3 s are over; not finished: rank 1"
    assert finished.err.splitlines()[-1] == last
    assert re.search(r"^\[r1\].*program.py\", line 5 in stuck$", finished.err, re.MULTILINE)
    assert not finished.survivors()


def deaf_job(folder: Path):
    """A running job of two ranks that are deaf to SIGTERM."""
    write(folder, ONE_FAILS)
    process, mark = start("-n", "2", "program.py", "0", "time.sleep(600)", "deaf", cwd=folder)
    wait_for(folder / "failed")
    return process, mark


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_the_launcher_ends_everything(number, tmp_path):
    process, mark = deaf_job(tmp_path)
    begin = time.time()
    process.send_signal(number)
    finished = finish(process, mark)
    assert finished.ended - begin < GONE
    assert not finished.survivors()
    assert finished.status == 128 + number
    assert finished.err.splitlines()[-1] == (
        f"[distnn-launch] interrupted by {number.name}; not finished: ranks 0-1"
    )


def test_killing_the_launcher_ends_everything(tmp_path):
    process, mark = deaf_job(tmp_path)
    assert survivors(mark)
    process.kill()
    end = time.monotonic() + GONE
    while survivors(mark) and time.monotonic() < end:
        time.sleep(0.05)
    assert not survivors(mark)
    process.communicate()


def test_killing_mpirun_or_a_supervisor_ends_everything(tmp_path):
    process, mark = deaf_job(tmp_path)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    begin = time.time()
    finished = finish(process, mark)
    assert finished.ended - begin < GONE
    assert not finished.survivors()
    assert finished.status != 0


def test_an_mpirun_that_does_not_end_by_itself_is_ended(tmp_path):
    write(tmp_path, "print('done')")
    command = launch("-n", "1", "--dry-run", "program.py", cwd=tmp_path).out.split()
    text = f"""\
        #!/bin/sh
        trap '' TERM
        {command[0]} "$@"
        [ "$1" = --version ] || sleep 600
    """
    write(tmp_path, text, "mpirun")
    (tmp_path / "mpirun").chmod(0o755)
    begin = time.time()
    finished = launch("-n", "1", "--mpirun", str(tmp_path / "mpirun"), "program.py", cwd=tmp_path)
    assert (finished.status, finished.out, finished.err) == (0, "[r0] done\n", "")
    assert finished.ended - begin < 10
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


def test_without_the_launcher_an_exception_still_ends_all_ranks(tmp_path):
    write(tmp_path, ONE_FAILS)
    command = launch("-n", "2", "--dry-run", "program.py", cwd=tmp_path).out.split()
    by_hand = command[: command.index(sys.executable)]
    clean, mark = environment({})
    run = subprocess.run(
        [*by_hand, sys.executable, "-m", "distnn.launcher.rank", "program.py", "1", "1 / 0"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=clean,
        timeout=30,
    )
    assert run.returncode == 1
    assert "ZeroDivisionError: division by zero" in run.stderr
    assert "distnn.launcher.rank" not in " ".join(survivors(mark))
