"""Ranks and GPUs that are late, NCCL that fails; and real jobs on the emulator."""

from __future__ import annotations

import json
import os
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from gpu_emulator import nccl
from gpu_ranks import emulated
from launching import launch, needs_mpi, write
from ranks import connected, on_device, on_ranks

from distnn.communicators.board import SilentBoard, Status
from distnn.communicators.nccl import DeviceTransport
from distnn.communicators.watch import Operation, Watch
from distnn.errors import DeadCommunicatorError

# -- ranks that are late, GPUs that fail ----------------------------------------------------------


@emulated
def test_a_gpu_that_is_late_is_named_and_everybody_gets_out():
    """Rank 1's GPU still computes: rank 0 says so after its deadline, and is not stuck."""
    from gpu_emulator.stream import in_background

    computing = threading.Event()

    def work():
        comm = connected(timeout=1)
        a = on_device(np.ones(4, np.float32))
        comm.all_reduce(a)
        if comm.rank == 1:
            in_background(0, computing.wait)
        comm.all_reduce(a)  # comes back at once: it is only queued
        begin = time.monotonic()
        if comm.rank == 1:
            computing.wait(10)
        with pytest.raises(DeadCommunicatorError) as raised:
            a.data  # noqa: B018 - reads
        if comm.rank == 0:
            computing.set()
            assert 0.8 < time.monotonic() - begin < 8
            message = str(raised.value)
            assert "[all_reduce no. 2] did not end within 1 seconds" in message
            assert "rank 1 is late: its GPU has not computed what comes before" in message
            with pytest.raises(DeadCommunicatorError):
                comm.all_reduce(a)

    try:
        on_ranks("nccl 2", work)
    finally:
        computing.set()


@emulated
def test_a_failure_of_nccl_is_raised_at_the_next_read_and_in_the_next_collective():
    held = threading.Event()
    queued = threading.Barrier(2)

    def work():
        comm = connected()
        a = on_device(np.ones(4, np.float32))
        comm.all_reduce(a)
        comm.barrier()
        nccl.behaviour.held = {0: held}
        comm.all_reduce(a)
        queued.wait(10)  # a failure while a rank still queues is raised there
        nccl.behaviour.broken = dict.fromkeys((0, 1), "a cable is out")
        with pytest.raises(DeadCommunicatorError, match=r"NCCL has failed: .*a cable is out"):
            a.data  # noqa: B018 - reads
        with pytest.raises(DeadCommunicatorError, match="a cable is out"):
            comm.barrier()

    try:
        on_ranks("nccl 2", work)
    finally:
        held.set()


class Work:
    """Something queued on a device."""

    def __init__(self):
        self.reached = self.done = False


def watched(work, board=None, failure=lambda: None, timeout=0.3):
    """A watch over one operation of ranks 0 and 1, and where its error arrives."""
    lost = []
    watch = Watch(board or SilentBoard(), 0, timeout, lost.append)
    watch.add(Operation(work, failure, "world", [0, 1], 7, "all_reduce no. 7"))
    return watch, lost


def wait_for(condition, timeout=5.0):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_watch_counts_only_the_time_in_which_this_gpu_waits_for_others():
    work = Work()
    watch, lost = watched(work)
    time.sleep(0.6)  # this GPU computes
    assert not lost
    work.reached = True
    begin = time.monotonic()
    wait_for(lambda: lost)
    assert 0.2 < time.monotonic() - begin < 2
    assert "[all_reduce no. 7] did not end within 0.3 seconds" in str(lost[0])
    watch.close()


def test_the_watch_waits_at_the_end_for_what_other_ranks_need():
    work = Work()
    work.reached = True
    watch, lost = watched(work, timeout=30)
    threading.Timer(0.3, lambda: setattr(work, "done", True)).start()
    begin = time.monotonic()
    watch.close()
    assert time.monotonic() - begin > 0.2
    assert not lost


def test_the_watch_names_ranks_whose_gpu_is_late_and_ranks_that_have_left():
    class Board(SilentBoard):
        left = {}  # noqa: RUF012
        ended = ()

        def gone(self):
            return self.left

        def statuses(self):
            return {
                0: Status({"world": 9}, "world", "x", False, 0.0, {"world": 7}),
                1: Status({"world": 9}, "world", "bucket 2", False, 3.0, {"world": 6}),
            }

        def end(self, ranks, why):
            self.ended = list(ranks)

    work, board = Work(), Board()
    work.reached = True
    watch, lost = watched(work, board)
    wait_for(lambda: lost)
    assert "rank 1 is late: its GPU has not computed what comes before; it left bucket 2" in str(
        lost[0]
    )
    assert board.ended == [1]
    board.left = {1: "its process has ended"}
    watch, lost = watched(work, board, timeout=60)
    wait_for(lambda: lost)
    assert "waits for ranks that have left the job (rank 1: its process has ended)" in str(lost[0])
    watch.close()


def test_the_watch_tells_a_failure_that_came_with_the_end():
    work = Work()
    work.reached = work.done = True
    watch, lost = watched(work, failure=lambda: "remote error")
    wait_for(lambda: lost)
    assert "NCCL has failed: remote error" in str(lost[0])
    watch.close()


def test_who_gives_up_ends_what_is_under_way_on_the_device_in_groups_too():
    calls = []

    class Host:
        rank, size, local_rank, polled_bytes, check = 0, 2, 0, 0, None

        def subset(self, ranks):
            return Host()

        def give_up(self):
            calls.append("host")

    transport = DeviceTransport(Host())
    part = transport.subset([0, 1])
    for found, name in ((transport, "world"), (part, "group")):
        found._gpus = SimpleNamespace(abort=lambda name=name: calls.append(name))
    transport.give_up()
    assert calls == ["group", "world", "host"]


# -- real jobs ------------------------------------------------------------------------------------

PROGRAM = """
    import json, os, sys
    sys.path.insert(0, {tests!r})
    import gpu_emulator
    gpu_emulator.install()
    import numpy as np
    import distnn as nn
    import distnn.functions as F, distnn.parametric_functions as PF, distnn.solvers as S
    from distnn import parameter_slab
    from distnn.ext_utils import get_extension_context
    from distnn.transfer import on_host

    parameter_slab._BLOCK_BYTES = 1 << 20
    nn.set_default_context(get_extension_context({extension!r}))
    solver = S.Momentum(0.1)
    comm = nn.data_parallel(solver, pack_size=20)
    rows = 12 // comm.size
    x, t = nn.Variable((rows, 3)), nn.Variable((rows, 2))
    h = F.tanh(PF.affine(x, 7, name="1"))
    loss = F.mean(F.squared_error(PF.affine(h, 2, name="2"), t))
    solver.set_parameters(nn.get_parameters())
    for step in range(4):
        batch = np.random.RandomState(step).randn(12, 5).astype(np.float32)
        mine = batch[comm.rank * rows : comm.rank * rows + rows]
        x.d, t.d = mine[:, :3], mine[:, 3:]
        loss.forward()
        solver.zero_grad()
        loss.backward()
        solver.update()
    comm.check_consistency(solver=solver)
    if comm.rank == 0:
        array = next(iter(nn.get_parameters().values())).data._storage.array
        found = {{k: p.d.tolist() for k, p in nn.get_parameters().items()}}
        print("RESULT " + json.dumps([on_host(array), comm.size, found]))
"""


def result(finished):
    (line,) = [line for line in finished.out.split("\n") if "RESULT" in line]
    return json.loads(line.split("RESULT ")[1])


def program(extension):
    return PROGRAM.format(tests=os.path.dirname(os.path.abspath(__file__)), extension=extension)


@needs_mpi
@pytest.mark.slow
def test_two_processes_that_share_a_gpu_train_as_one_on_the_cpu_does(tmp_path):
    script = write(tmp_path, program("cudnn"))
    shared = launch("-n", "2", "--share-gpu", script, cwd=tmp_path)
    assert shared.status == 0, shared.err
    on_the_host, size, found = result(shared)
    assert (on_the_host, size) == (False, 2)
    everything = shared.out + shared.err
    assert everything.count("by way of the host's memory, which is much slower than NCCL") == 1
    alone = launch("-n", "1", write(tmp_path, program("cpu"), "alone.py"), cwd=tmp_path)
    on_the_host, size, expected = result(alone)
    assert (on_the_host, size) == (True, 1)
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=1e-4, atol=1e-6)


@needs_mpi
@pytest.mark.slow
def test_two_processes_on_one_gpu_that_did_not_ask_for_it_end_with_an_error(tmp_path):
    finished = launch("-n", "2", write(tmp_path, program("cudnn")), cwd=tmp_path)
    assert finished.status != 0
    everything = finished.out + finished.err
    assert "ranks 0, 1 on " in everything
    assert "use the same GPU, Emulated GPU at 0000:00:00.0" in everything
    assert "DISTNN_SHARE_GPU=1 (distnn-launch --share-gpu)" in everything
    assert not finished.survivors()
