"""Jobs that fail under a real mpirun: what is reported, and how soon everything is gone."""

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
    assert "prterun" not in finished.err  # what it says of ranks that we have ended
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


def child_of(process: int) -> int:
    return int(Path(f"/proc/{process}/task/{process}/children").read_text().split()[0])


@pytest.mark.parametrize("victim", ["mpirun", "a supervisor"])
def test_killing_mpirun_or_a_supervisor_ends_everything(victim, tmp_path):
    process, mark = deaf_job(tmp_path)
    mpirun = child_of(process.pid)
    os.kill(mpirun if victim == "mpirun" else child_of(mpirun), signal.SIGKILL)
    begin = time.time()
    finished = finish(process, mark)
    assert finished.ended - begin < GONE
    assert not finished.survivors()
    assert finished.status != 0
    assert f"{victim.split()[-1]} " in finished.err  # who is gone


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


NO_PORT = """\
#!/bin/sh
[ "$1" = --version ] || echo started >> starts
if [ "$1" != --version ] && [ $(wc -l < starts) -le {failures} ]; then
    echo "The PMIx server's listener thread failed to start. We cannot" >&2
    exit 213
fi
exec {mpirun} "$@"
"""


@pytest.mark.parametrize(("failures", "starts", "status"), [(0, 1, 0), (2, 3, 0), (9, 3, 213)])
def test_an_mpirun_that_finds_no_port_is_started_again(failures, starts, status, tmp_path):
    write(tmp_path, "print('done')")
    command = launch("-n", "1", "--dry-run", "program.py", cwd=tmp_path).out.split()
    write(tmp_path, NO_PORT.format(failures=failures, mpirun=command[0]), "mpirun")
    (tmp_path / "mpirun").chmod(0o755)
    finished = launch("-n", "1", "--mpirun", str(tmp_path / "mpirun"), "program.py", cwd=tmp_path)
    assert finished.status == status
    assert finished.out == ("" if status else "[r0] done\n")
    assert finished.err.count("listener thread failed to start") == min(failures, 3)
    assert finished.err.count("it is started again") == starts - 1
    assert len((tmp_path / "starts").read_text().split()) == starts


def test_without_the_launcher_an_exception_still_ends_all_ranks(tmp_path):
    write(tmp_path, ONE_FAILS)
    command = launch("-n", "2", "--dry-run", "program.py", cwd=tmp_path).out.split()
    by_hand = command[: command.index(sys.executable)]
    # Without the launcher what a killed rank leaves in /dev/shm would stay there.
    clean, mark = environment({"OMPI_MCA_btl_sm_backing_directory": str(tmp_path)})
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
