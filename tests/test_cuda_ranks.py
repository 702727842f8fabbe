"""Which GPU a rank takes, which way arrays go, and what ranks can do wrong."""

from __future__ import annotations

import re

import numpy as np
import pytest
from gpu_emulator import nccl, settings
from gpu_ranks import emulated, network, over_gpus
from ranks import connected, on_device, on_ranks

import distnn as nn
import distnn.communicators as C
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S
from distnn.communicators.nccl import no_nccl
from distnn.context import current_world
from distnn.errors import CommunicatorError, ContextError
from distnn.ext_utils import get_extension_context
from distnn.utils.communicator_util import create_communicator

# -- which GPU, which way -------------------------------------------------------------------------


def fact(rank=0, **changes):
    found = {
        "host": "node1",
        "process": 100 + rank,
        "device": 0,
        "gpu": f"NVIDIA H200 at 0000:0{rank}:00.0",
        "identifier": "",
        "nccl": 22809,
        "shares": False,
        "several_on_one": False,
    }
    return {**found, **changes}


def test_ranks_with_a_gpu_each_use_nccl():
    assert no_nccl([fact(0), fact(1), fact(0, host="node2"), fact(1, host="node2")]) is None
    # Parts of one GPU
    assert no_nccl([fact(gpu="A", identifier="1"), fact(gpu="A", identifier="2")]) is None


def test_two_ranks_on_one_gpu_are_an_error_unless_the_user_wants_it():
    same = [fact(0), fact(1, gpu="A"), fact(2, gpu="A")]
    with pytest.raises(CommunicatorError) as raised:
        no_nccl(same)
    for part in ("ranks 1, 2 on node1", "the same GPU, A (device 0 of rank 1)",
                 "DISTNN_SHARE_GPU=1", "--share-gpu", "device_id='auto'"):  # fmt: skip
        assert part in str(raised.value)
    same[1]["shares"] = True
    with pytest.raises(CommunicatorError):
        no_nccl(same)
    same[2]["shares"] = True
    assert no_nccl(same) == "ranks 1, 2 on node1 share A"
    for found in same:
        found["several_on_one"] = True
    assert no_nccl(same) == "ranks 1, 2 on node1 share A"  # NCCL 2.28.9 cannot
    for found in same:
        found["nccl"] = 23003
    assert no_nccl(same) is None
    # Threads of one process are there to be tested.
    assert no_nccl([fact(0, gpu="A", process=1), fact(1, gpu="A", process=1)]) is not None


def test_a_rank_without_nccl_is_named_with_what_to_install():
    why = no_nccl([fact(0), fact(1, nccl=0), fact(2), fact(3, nccl=0)])
    assert why == "NCCL is missing on rank 1, 3; pip install 'distnn[cuda13]' (or cuda12)"


@emulated
def test_the_slower_way_is_said_once(caplog):
    def work():
        comm = connected()
        comm.new_group(("both", [0, 1]))
        a = on_device(np.ones(3, np.float32))
        for _ in range(2):
            comm.all_reduce(a)
            comm.all_reduce(a, group="both")
        C.TorusAllReduce(comm, (1, 2)).all_reduce(a)
        assert np.all(a.data == 32)

    on_ranks("staged 2", work)
    told = [r.getMessage() for r in caplog.records if "by way of the host" in r.getMessage()]
    assert len(told) == 1
    assert "ranks 0, 1 on " in told[0]
    assert "share Emulated GPU at 0000:00:00.0" in told[0]


@emulated
def test_without_nccl_arrays_go_over_the_host(monkeypatch, caplog):
    monkeypatch.setattr(nccl, "available", False)

    def work():
        comm = connected()
        a = on_device(np.full(3, comm.rank + 1, np.float32))
        comm.all_reduce(a)
        assert a.data.tolist() == [3, 3, 3]

    on_ranks("nccl 2", work)
    assert "NCCL is missing on rank 0, 1; pip install" in caplog.text


@emulated
def test_nccl_that_cannot_connect_raises_on_all_ranks_and_names_the_one():
    def work():
        comm = connected()
        a = on_device(np.ones(3, np.float32))
        with pytest.raises(CommunicatorError, match="NCCL_DEBUG=INFO") as raised:
            comm.all_reduce(a)
        assert "rank 1: NCCL_ERROR_2: no network" in str(raised.value)

    with nccl.behaviour.using(refused={1: "no network"}):
        on_ranks("nccl 2", work)


@emulated
def test_a_device_is_chosen_by_local_rank(monkeypatch):
    from distnn.cuda.device import device_number

    with settings.using(device_count=4):
        assert [device_number("auto", rank) for rank in range(4)] == [0, 1, 2, 3]
        assert [device_number(str(n), 3) for n in range(4)] == [0, 1, 2, 3]
        with pytest.raises(ContextError, match=r"rank 4 of its machine.*sees 4 GPUs.*DISTNN_SHARE"):
            device_number("auto", 4)
        monkeypatch.setenv("DISTNN_SHARE_GPU", "1")
        assert device_number("auto", 4) == 0
        assert device_number("5", 5) == 1
        monkeypatch.delenv("DISTNN_SHARE_GPU")
    with settings.using(device_count=1):
        # Slurm shows each task its own GPU, as number 0; scripts ask for that of the local rank.
        assert [device_number("auto", rank) for rank in range(4)] == [0, 0, 0, 0]
        assert device_number("3", 3) == 0
        with pytest.raises(ContextError, match="device_id is 3 but this process sees 1 GPU;"):
            device_number("3", 0)
    for text in ("first", "-1", ""):
        with pytest.raises(ContextError, match=re.escape(f"device_id is {text!r}; pass")):
            device_number(text, 0)


@emulated
def test_contexts_use_the_gpu_of_their_rank(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "5")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "8")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "4")
    with settings.using(device_count=4):
        assert get_extension_context("cudnn").device_id == "1"
        assert nn.Context(["cudnn:float"], device_id="auto").resolve().device == 1
        assert get_extension_context("cudnn", device_id=2).resolve().device == 2
        with nn.context_scope(get_extension_context("cudnn")):
            assert on_device(np.ones(2))._storage.array.device.id == 1
        assert on_device(np.ones(2))._storage.array.device.id == 0
        with pytest.raises(ContextError, match="device_id is 4 but this process sees 4 GPUs"):
            get_extension_context("cudnn", device_id=4)
    with settings.using(device_count=1):
        assert get_extension_context("cudnn").device_id == "0"
        assert get_extension_context("cudnn", device_id=1).resolve().device == 0
        with pytest.raises(ContextError, match="device_id is 2 but this process sees 1 GPU;"):
            get_extension_context("cudnn", device_id=2)


@emulated
def test_a_script_of_nnabla_gets_the_gpu_of_its_local_rank():
    def work():
        context = get_extension_context("cudnn", device_id="0")
        comm = C.MultiProcessDataParallelCommunicator(context)
        comm.init()
        context.device_id = str(comm.local_rank)
        nn.set_default_context(context)
        loss, grads = network(0)
        loss.forward()
        loss.backward()
        comm.all_reduce(grads, division=True)
        return grads[0]._storage.array.device.id

    with settings.using(device_count=3):
        assert C.run_threads(work, 3) == [0, 1, 2]
    with settings.using(device_count=1):
        assert C.run_threads(work, 2) == [0, 0]


@emulated
def test_create_communicator_and_data_parallel_connect_gpus():
    def train(make):
        comm, solver = make()
        rows = 12 // comm.size
        x, t = nn.Variable((rows, 3)), nn.Variable((rows, 2))
        loss = F.mean(F.squared_error(PF.affine(x, 2), t))
        solver.set_parameters(nn.get_parameters())
        callback = None
        if not current_world().backward_callbacks:
            grads = [p.grad for p in nn.get_parameters().values()]
            callback = comm.all_reduce_callback(grads, division=True)
        for step in range(3):
            batch = np.random.RandomState(step).randn(12, 5).astype(np.float32)
            mine = batch[comm.rank * rows : comm.rank * rows + rows]
            x.d, t.d = mine[:, :3], mine[:, 3:]
            loss.forward()
            solver.zero_grad()
            loss.backward(communicator_callbacks=callback)
            solver.update()
        return {k: p.d.copy() for k, p in nn.get_parameters().items()}

    def by_utility():
        return create_communicator(extension_module="cudnn"), S.Momentum(0.1)

    def in_three_lines():
        nn.set_default_context(get_extension_context("cudnn"))
        solver = S.Momentum(0.1)
        return nn.data_parallel(solver), solver

    (expected,) = C.run_threads(train, 1, lambda: (create_communicator(), S.Momentum(0.1)))
    for make in (by_utility, in_three_lines):
        with settings.using(device_count=3):
            for found in C.run_threads(train, 3, make):
                for key, array in found.items():
                    np.testing.assert_allclose(array, expected[key], rtol=1e-4, atol=1e-6)


# -- what ranks do wrong --------------------------------------------------------------------------


@emulated
@pytest.mark.parametrize("wrong", [[0, 1], [1]])
def test_arrays_on_different_devices_in_one_call_raise_on_all_ranks(wrong):
    def work():
        comm = connected()
        arrays = [on_device(np.ones(2, np.float32)) for _ in range(3)]
        if comm.rank in wrong:
            other = get_extension_context("cudnn", device_id=2 + comm.rank)
            with nn.context_scope(other):
                arrays[2] = on_device(np.ones(2, np.float32))
        both = "array 0 lies on GPU [01] but array 2 on GPU [23]; exchange the arrays of each"
        one = "arrays lie on a GPU on rank 0; several devices on rank 1"
        for collective in (
            lambda: comm.all_reduce(arrays),
            lambda: comm.bcast(arrays, 0),
            lambda: comm.reduce(arrays, 1),
        ):
            with pytest.raises(CommunicatorError, match=both if len(wrong) == 2 else one):
                collective()
        comm.all_reduce(arrays[0])
        assert arrays[0].data.tolist() == [2, 2]

    with settings.using(device_count=4):
        C.run_threads(lambda: (nn.set_default_context(get_extension_context("cudnn")), work()), 2)


@emulated
def test_a_rank_that_changes_its_gpu_is_told():
    def work():
        comm = connected(timeout=2)
        comm.all_reduce(on_device(np.ones(2, np.float32)))
        with nn.context_scope(get_extension_context("cudnn", device_id=2 + comm.rank)):
            other = on_device(np.ones(2, np.float32))
            match = f"an array lies on GPU {2 + comm.rank} but .* with GPU {comm.rank}; use one GPU"
            with pytest.raises(CommunicatorError, match=match):
                comm.all_reduce(other)

    def on_its_gpu():
        nn.set_default_context(get_extension_context("cudnn"))
        work()

    with settings.using(device_count=4):
        C.run_threads(on_its_gpu, 2)


@emulated
def test_ranks_on_the_cpu_beside_ranks_on_gpus_raise_on_all_ranks():
    def work():
        comm = connected()
        nn.set_default_context(get_extension_context("cudnn" if comm.rank else "cpu"))
        with pytest.raises(CommunicatorError, match="backend 0: cpu on rank 0; cuda on rank 1"):
            comm.connect_devices()
        a = on_device(np.ones(2, np.float32))
        match = "arrays lie on the host on rank 0; a GPU on rank 1; make them on the same"
        with pytest.raises(CommunicatorError, match=match):
            comm.all_reduce(a)

    C.run_threads(work, 2)


@emulated
@over_gpus
def test_arrays_assigned_on_the_host_are_exchanged_where_the_context_computes(transport):
    def work():
        comm = connected()
        a, b = nn.NdArray((3,)), nn.NdArray((3,))
        a.data = np.full(3, comm.rank + 1, np.float32)
        view = b.data  # somebody holds a writable array
        comm.all_reduce_callback([a, b])
        view[...] = comm.rank + 2
        comm.all_reduce([a, b])
        size = comm.size
        assert a.data.tolist() == [size * (size + 1) / 2] * 3
        assert b.data.tolist() == [size * (size + 3) / 2] * 3

    on_ranks(transport, work)
