"""Ranks that compute differently on the CPU find out when they are connected."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

import numpy as np
import pytest
from launching import launch, needs_mpi, write
from ranks import connected

import distnn as nn
import distnn.communicators as C
from distnn import processor
from distnn.communicators import arithmetic
from distnn.errors import CommunicatorError


@pytest.fixture
def described(monkeypatch):
    """Sets what one rank of threads says of its arithmetic besides what is true."""
    original = arithmetic.described
    changes = {}

    def changed():
        rank = nn.context.current_world().transport.rank
        return original() | changes.get(rank, {})

    monkeypatch.setattr(arithmetic, "described", changed)
    return changes


def test_equal_ranks_have_no_differences(caplog):
    assert C.run_threads(lambda: connected().differences, 3) == ["", "", ""]
    assert connected().differences == ""
    assert "round" not in caplog.text


def test_other_kernels_are_an_error_on_all_ranks(described):
    described[1] = {"kernels": "abacus (Numba is not installed)"}
    names = []
    lock = threading.Lock()

    def work():
        with pytest.raises(CommunicatorError) as raised:
            connected()
        with lock:
            names.append(str(raised.value))

    C.run_threads(work, 3)
    kernels = nn.get_cpu_kernels()
    expected = (
        f"[init] the CPU's kernels are {kernels} on rank 0, 2; abacus (Numba is not installed) on "
        "rank 1; install the same on all machines, pip install 'distnn[cpu]', or choose"
    )
    assert len(names) == 3
    assert all(name.startswith(expected) for name in names)


def test_other_processors_are_a_warning_and_where_bits_are_promised_an_error(described, caplog):
    described[2] = {"tile registers (AMX)": "broken", "Numba": "0.1"}

    def work():
        comm = connected()
        array = nn.NdArray.from_numpy_array(np.ones(3, np.float32))
        comm.all_reduce(array)
        np.testing.assert_array_equal(array.data, 3)
        with pytest.raises(CommunicatorError, match=r"\[virtual_workers\] .* broken on rank 2"):
            comm.virtual_workers(3, np.ones(3))
        return comm.differences

    with caplog.at_level(logging.WARNING, "distnn"):
        texts = C.run_threads(work, 3)
    assert len(set(texts)) == 1
    assert "broken on rank 2" in texts[0]
    assert "0.1 on rank 2" in texts[0]
    assert [r.levelname for r in caplog.records if "ranks round differently" in r.message] == [
        "WARNING"
    ]


def test_a_rank_on_a_gpu_does_not_take_part(described):
    described[0] = {"kernels": "abacus"}

    def work():
        gpu = nn.Context(["cudnn:float"])  # never used, so there need not be one
        comm = C.MultiProcessDataParallelCommunicator(gpu, timeout=30)
        comm.init()
        return comm.differences

    assert C.run_threads(work, 2) == ["", ""]


JOB = """
    import os, sys
    rank = os.environ["OMPI_COMM_WORLD_RANK"]
    if rank == "1":
        os.environ.update({changes})
    import logging
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    import numpy as np, distnn.communicators as C, distnn.errors
    comm = C.MultiProcessDataParallelCommunicator(timeout=30)
    try:
        comm.init()
        comm.virtual_workers(2, np.ones(2))
    except distnn.errors.CommunicatorError as error:
        print(rank, "got", error, flush=True)
"""


def job(folder, changes, **environment):
    program = write(folder, JOB.format(changes=changes))
    done = launch("-n", "2", program, cwd=folder, **environment)
    assert done.status == 0, done.err
    return done.out


@needs_mpi
def test_real_ranks_with_and_without_numba(tmp_path):
    pytest.importorskip("numba")
    out = job(tmp_path, {"DISTNN_CPU_KERNELS": "numpy"})
    for rank in (0, 1):
        assert f"{rank} got [init] the CPU's kernels are numba on rank 0; numpy on rank 1" in out


@needs_mpi
def test_real_ranks_with_other_instructions(tmp_path):
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found")
    if not found:
        pytest.skip("NumPy has nothing here that could be switched off")
    out = job(tmp_path, {"NPY_DISABLE_CPU_FEATURES": " ".join(found)})
    assert "[init] ranks round differently" in out
    for rank in (0, 1):
        assert f"{rank} got rank {rank}: [virtual_workers] ranks round differently" in out
    assert "no extensions on rank 1" in out


def test_describing_needs_no_compiler():
    code = "from distnn.communicators import arithmetic; import sys\n"
    code += "found = arithmetic.described(); assert 'numba' not in sys.modules; print(found)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("kernels", "processor", "NumPy", "BLAS"):
        assert f"'{name}': '" in done.stdout


def test_tile_registers_are_found_where_they_can_be_used():
    amx = pytest.importorskip("distnn.cpu.amx")
    assert processor.tile_registers() == amx.available()
