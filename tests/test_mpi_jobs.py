"""Real jobs of a communicator under plain mpirun, without the launcher: how they end."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from launching import environment, needs_mpi, survivors

ONE_FAILS = """
    import threading
    import numpy as np
    import distnn as nn
    import distnn.communicators as C

    comm = C.MultiProcessDataParallelCommunicator()
    comm.init()

    def fail():
        raise RuntimeError("the data of this rank are gone")

    if comm.rank == 1:
        {failure}
    array = nn.NdArray.from_numpy_array(np.ones(3, np.float32))
    comm.all_reduce(array)
    comm.barrier()
"""

MISSING = """
    import os, signal, sys, time
    import numpy as np
    import distnn as nn
    import distnn.communicators as C

    comm = C.MultiProcessDataParallelCommunicator(timeout={timeout})
    comm.init()
    array = nn.NdArray.from_numpy_array(np.ones(3, np.float32))
    comm.all_reduce(array)

    def read_data_for_long():
        time.sleep(60)

    if comm.rank == 1:
        {missing}
    try:
        {collective}
    except Exception as error:
        print(f"rank {{comm.rank}} got {{type(error).__name__}}: {{error}}", flush=True)
        {then}
"""

CONNECTS = """
    import sys
    {before}
    import distnn.communicators as C

    C.MultiProcessDataParallelCommunicator().init()
"""


def missing_rank(
    timeout: float, missing: str, then: str = "raise", collective: str = "comm.bcast(array, 0)"
) -> str:
    """A program in which rank 1 does `missing` while the others do the collective."""
    return MISSING.format(timeout=timeout, missing=missing, then=then, collective=collective)


def run(tmp_path: Path, text: str, command: list[str], changes: dict | None = None):
    """Run `text` as a program behind `command`; returns what it ended with, and its mark."""
    (tmp_path / "program.py").write_text(textwrap.dedent(text))
    clean, mark = environment(
        {"OMPI_MCA_btl_sm_backing_directory": str(tmp_path)} | (changes or {})
    )
    for _ in range(3):
        finished = subprocess.run(
            [*command, sys.executable, "program.py"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=clean,
            timeout=60,
        )
        # Open MPI finds no port for its own server now and then; distnn-launch starts it again.
        if "listener thread failed to start" not in finished.stderr:
            break
    return finished, mark


def job(tmp_path: Path, text: str, ranks: int = 2):
    """Run `text` on ranks under plain mpirun; returns how it ended, its mark and its seconds."""
    from distnn.launcher.mpi import find_mpirun, mpi_of_mpi4py

    mpirun = find_mpirun(mpi_of_mpi4py())
    options = ["-n", str(ranks), "--allow-run-as-root", "--map-by", "slot:OVERSUBSCRIBE"]
    begin = time.monotonic()
    finished, mark = run(tmp_path, text, [mpirun, *options])
    return finished, mark, time.monotonic() - begin


@needs_mpi
@pytest.mark.parametrize("failure", ["fail()", "threading.Thread(target=fail).start()"])
def test_an_uncaught_exception_on_one_rank_ends_all_ranks(failure, tmp_path):
    finished, mark, seconds = job(tmp_path, ONE_FAILS.format(failure=failure))
    assert seconds < 30  # start of two Pythons and of MPI included
    assert finished.returncode != 0
    assert "RuntimeError: the data of this rank are gone" in finished.stderr
    assert "rank 1" in finished.stderr
    assert not survivors(mark)


@needs_mpi
@pytest.mark.parametrize("then", ["raise", "pass"])
@pytest.mark.parametrize(
    ("collective", "name"),
    [("comm.bcast(array, 0)", "bcast from rank 0"), ("comm.all_reduce(array)", "all_reduce")],
    ids=["on the communication thread", "polled by the main thread"],
)
def test_a_late_rank_is_named_prints_its_stack_and_is_ended(collective, name, then, tmp_path):
    text = missing_rank(2, "read_data_for_long()", then, collective)
    finished, mark, seconds = job(tmp_path, text, ranks=3)
    assert seconds < 30
    assert finished.returncode != 0
    assert f"[{name} no. 2] did not end within 2 seconds" in finished.stdout
    assert "rank 1 is late: it left all_reduce no. 1" in finished.stdout
    assert "in read_data_for_long" in finished.stderr
    assert not survivors(mark)


@needs_mpi
def test_a_frozen_rank_is_named_and_ended(tmp_path):
    text = missing_rank(1, "os.kill(os.getpid(), signal.SIGSTOP)")
    finished, mark, seconds = job(tmp_path, text)
    assert seconds < 30
    assert finished.returncode != 0
    assert "rank 1 is late: it does not answer" in finished.stdout
    assert not survivors(mark)


@needs_mpi
@pytest.mark.parametrize("collective", ["comm.bcast(array, 0)", "comm.all_reduce(array)"])
@pytest.mark.parametrize("missing", ["sys.exit(3)", "sys.exit(0)"])
def test_a_rank_that_leaves_early_is_noticed_before_the_deadline(missing, collective, tmp_path):
    text = missing_rank(300, missing, collective=collective)
    finished, mark, seconds = job(tmp_path, text)
    assert seconds < 30
    assert finished.returncode != 0
    assert "waits for ranks that have left the job (rank 1" in finished.stdout
    assert not survivors(mark)


@needs_mpi
def test_ranks_that_mpi_does_not_see_are_an_error(tmp_path):
    finished, _ = run(tmp_path, CONNECTS.format(before=""), [], {"PMI_SIZE": "2"})
    assert finished.returncode == 1
    assert "2 ranks were started (PMI_SIZE=2) but mpi4py, which uses" in finished.stderr
    assert "sees one" in finished.stderr
    assert "distnn-launch" in finished.stderr


def test_ranks_without_mpi4py_are_an_error_that_says_what_to_install(tmp_path):
    without = CONNECTS.format(before='sys.modules["mpi4py"] = None')
    finished, _ = run(tmp_path, without, [], {"OMPI_COMM_WORLD_SIZE": "4"})
    assert finished.returncode == 1
    assert "4 ranks were started (OMPI_COMM_WORLD_SIZE=4) but mpi4py is not" in finished.stderr
    assert "pip install distnn[mpi]" in finished.stderr


@needs_mpi
def test_an_mpi_without_threads_is_refused(tmp_path):
    before = "import mpi4py; mpi4py.rc.threads = False; import mpi4py.MPI"
    finished, _ = run(tmp_path, CONNECTS.format(before=before), [])
    assert finished.returncode == 1
    assert "MPI was started without thread support" in finished.stderr
    assert "thread_level = 'multiple'" in finished.stderr


@needs_mpi
def test_abort_ends_all_ranks_with_its_status(tmp_path):
    text = missing_rank(300, "comm.abort(7)")
    finished, mark, seconds = job(tmp_path, text)
    assert seconds < 30
    assert finished.returncode == 7
    assert not survivors(mark)


SWAPPED = """
    import numpy as np
    import distnn as nn
    import distnn.communicators as C
    import distnn.parametric_functions as PF

    comm = C.MultiProcessDataParallelCommunicator()
    comm.init()
    for name in ("first", "second"):
        PF.affine(nn.Variable((2, 3)), 3, name=name)
    gradients = [p.grad for p in nn.get_parameters().values()]
    if comm.rank == 2:
        gradients[0], gradients[2] = gradients[2], gradients[0]  # of equal shape
    comm.all_reduce(gradients)
"""


@needs_mpi
def test_swapped_gradients_end_the_job_with_their_names(tmp_path):
    finished, mark, seconds = job(tmp_path, SWAPPED, ranks=3)
    assert seconds < 30
    assert finished.returncode != 0
    assert (
        "[all_reduce] ranks disagree in array 0: first/affine/W (3, 3) float32 on rank 0, 1; "
        "second/affine/W (3, 3) float32 on rank 2"
    ) in finished.stderr
    assert not survivors(mark)


CHECKS = """
    import os
    import sys
    import distnn.communicators as C

    if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
        os.environ["DISTNN_CHECK"] = "0"
    try:
        C.MultiProcessDataParallelCommunicator().init()
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(5)
"""


@needs_mpi
def test_ranks_that_check_differently_end_with_the_reason(tmp_path):
    finished, mark, seconds = job(tmp_path, CHECKS, ranks=3)
    assert seconds < 30
    assert finished.returncode == 5
    said = "DISTNN_CHECK, or check=, is not set on rank 0, 2; 0 on rank 1; give all ranks the same"
    assert finished.stdout.count(said) == 3
    assert not survivors(mark)


HARNESS = """
    import numpy as np
    import pytest
    from ranks import connected

    import distnn as nn

    pytestmark = pytest.mark.mpi(min_size=2)


    def test_fails_on_one_rank():
        comm = connected()
        assert comm.rank != 1
        comm.barrier()


    def test_skips():
        connected()
        pytest.skip("to see that ranks agree on it")


    def test_passes_afterwards():
        comm = connected()
        array = nn.NdArray.from_numpy_array(np.ones(2))
        comm.all_reduce(array)
        assert array.data[0] == comm.size
"""


@needs_mpi
def test_a_test_that_fails_on_one_rank_fails_on_all_and_the_run_goes_on(tmp_path):
    pytest.importorskip("pytest_mpi", reason="MPI tests need distnn[test]")
    here = Path(__file__).resolve().parent
    (tmp_path / "conftest.py").write_text((here / "conftest.py").read_text())
    (tmp_path / "test_harness.py").write_text(textwrap.dedent(HARNESS))
    pytest_run = f"""
        import sys
        import pytest

        sys.path.append({str(here)!r})  # what conftest.py and the harness import
        raise SystemExit(pytest.main(["-q", "--color=no", "--with-mpi"]))
    """
    finished, mark, seconds = job(tmp_path, pytest_run, ranks=3)
    assert seconds < 40
    assert finished.returncode != 0
    assert "1 failed, 1 passed, 1 skipped" in finished.stdout
    assert "assert comm.rank != 1" in finished.stdout
    assert "waits for ranks that have left the job (rank 1" in finished.stdout
    assert not survivors(mark)
