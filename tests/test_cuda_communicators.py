"""What goes over NCCL (emulated, ranks are threads) and by way of the host, and in which order."""

from __future__ import annotations

import importlib.util
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from gpu_emulator import nccl, record
from gpu_ranks import carry_out, emulated, network, on_gpu, over_gpus, over_nccl, values
from ranks import connected, on_device, on_ranks

import distnn as nn
import distnn.communicators as C
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S
from distnn.communicators.transport import SingleTransport
from distnn.context import current_world
from distnn.errors import CommunicatorError


def expected_sum(arrays, dtype):
    """In float64 (integers exactly), and how far from it one rounding per addition may lead."""
    wide = np.float64 if np.dtype(dtype).kind not in "iu" else np.int64
    total = sum(a.astype(wide) for a in arrays)
    if wide is np.int64:
        return total, 0.0
    digits = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(np.dtype(dtype).name)
    return total, 4 * (digits or np.finfo(dtype).eps)


def dtypes():
    found = [np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8]
    if importlib.util.find_spec("ml_dtypes"):
        import ml_dtypes

        found.append(ml_dtypes.bfloat16)
    return found


# -- what a transport does with arrays of a GPU --------------------------------------------------


@emulated
@over_gpus
@pytest.mark.parametrize("dtype", dtypes(), ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("length", [0, 1, 1001])
def test_sums_and_maxima(transport, dtype, length):
    def work():
        comm = connected()
        size = comm.size
        everybodys = [values(r, length, dtype) for r in range(size)]
        rows = [values(10 + r, (size, length), dtype) for r in range(size)]
        a, b, root = (on_gpu(everybodys[comm.rank]) for _ in range(3))
        parts, out = on_gpu(rows[comm.rank]), on_gpu(np.zeros(length, dtype))

        def job(t):
            t.all_reduce(a, "sum")
            t.all_reduce(b, "max")
            t.reduce(root, size - 1)
            t.reduce_scatter(parts, out)

        carry_out(comm, job)
        total, tolerance = expected_sum(everybodys, dtype)
        np.testing.assert_allclose(a.get().astype(total.dtype), total, tolerance, tolerance)
        assert np.array_equal(b.get(), np.maximum.reduce(everybodys))
        mine = total if comm.rank == size - 1 else everybodys[comm.rank].astype(total.dtype)
        np.testing.assert_allclose(root.get().astype(total.dtype), mine, tolerance, tolerance)
        total, tolerance = expected_sum([r[comm.rank] for r in rows], dtype)
        np.testing.assert_allclose(out.get().astype(total.dtype), total, tolerance, tolerance)

    on_ranks(transport, work)


@emulated
@over_gpus
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int16, np.bool_])
def test_what_moves_keeps_its_bits(transport, dtype):
    """Broadcast, gather, all-to-all of unequal parts (some empty), scatter; from each rank."""

    def work():
        comm = connected()
        size, rank = comm.size, comm.rank
        for root in range(size):
            mine = on_gpu(values(rank, 77, np.float32).astype(dtype))
            gathered = on_gpu(np.zeros((size, 77), dtype))
            given = values(9, (size, 5), np.float32).astype(dtype)
            got = on_gpu(np.zeros(5, dtype))
            sent = [on_gpu(np.full(rank * 3 + r, r + 1).astype(dtype)) for r in range(size)]
            found = [on_gpu(np.zeros(r * 3 + rank, dtype)) for r in range(size)]
            given_here = on_gpu(given) if rank == root else None

            def job(
                t, mine=mine, out=gathered, root=root, given=given_here, got=got, a=sent, b=found
            ):
                t.all_gather(mine, out)
                t.broadcast(mine, root)
                t.scatter(given, got, root)
                t.all_to_all(a, b)

            carry_out(comm, job)
            everybodys = [values(r, 77, np.float32).astype(dtype) for r in range(size)]
            assert np.array_equal(mine.get(), everybodys[root])
            assert np.array_equal(gathered.get(), everybodys)
            assert np.array_equal(got.get(), given[rank])
            for r, array in enumerate(found):
                assert np.array_equal(array.get(), np.full(r * 3 + rank, rank + 1).astype(dtype))

    on_ranks(transport, work)


@emulated
def test_staging_cuts_large_arrays_into_pieces(monkeypatch):
    from distnn.cuda import staging

    monkeypatch.setattr(staging, "_PIECE_BYTES", 4096)

    def work():
        comm = connected()
        a, b = (on_gpu(values(comm.rank, 10_001, np.float32)) for _ in range(2))
        carry_out(comm, lambda t: (t.all_reduce(a, "sum"), t.broadcast(b, 1)))
        total = values(0, 10_001, np.float32) + values(1, 10_001, np.float32)
        assert np.array_equal(a.get(), total)
        assert np.array_equal(b.get(), values(1, 10_001, np.float32))

    on_ranks("staged 2", work)


@pytest.mark.parametrize("dtype", dtypes(), ids=lambda d: np.dtype(d).name)
def test_nccl_of_one_rank(dtype, gpu):
    """All that a machine with one GPU can show of NCCL itself."""
    from distnn.cuda.nccl import NcclRanks, unique_id, version

    if not version():
        pytest.skip("NCCL is not installed: pip install 'distnn[cuda13]'")
    ranks = NcclRanks(unique_id(), 0, 1)
    mine = values(0, 1001, dtype)
    a, out, sent, got = on_gpu(mine), on_gpu(mine[None] * 0), on_gpu(mine), on_gpu(mine * 0)
    for operation in ("sum", "max"):
        ranks.all_reduce(a, operation)
    ranks.reduce(a, 0)
    ranks.broadcast(a, 0)
    ranks.all_gather(a, out)
    ranks.reduce_scatter(out, a)
    ranks.all_to_all([sent], [got])
    ranks.scatter(out, a, 0)
    for array in (a, out[0], got):
        assert np.array_equal(array.get(), mine)
    assert ranks.failure() is None
    ranks.abort()


@emulated
def test_staging_waits_for_copies_before_it_exchanges_them(monkeypatch):
    from distnn.cuda import staging

    monkeypatch.setattr(staging, "_PIECE_BYTES", 1024)
    waits = []

    class Host(SingleTransport):
        """Notes, at each exchange, the bytes that came down and those the host waited for."""

        def all_reduce(self, array, operation):
            copied = waited = 0
            for operation in record.operations:
                if operation[:2] == ("copy", "DtoH"):
                    copied += operation[2]
                elif operation[0] == "event":
                    events[operation[1].ptr] = copied
                elif operation[:2] == ("synchronize", "event"):
                    waited = max(waited, events[operation[2]])
                elif operation[:2] == ("synchronize", "stream"):
                    waited = copied
            waits.append(waited)

        def all_gather(self, array, out):
            self.all_reduce(array, "sum")

    events = {}
    ranks = staging.StagedRanks(Host())
    array = on_gpu(np.ones(1000, np.float32))
    record.clear()
    ranks.all_reduce(array, "sum")
    assert waits == [1024, 2048, 3072, 4000]
    record.clear()
    ranks.all_gather(array, on_gpu(np.ones((1, 1000), np.float32)))
    assert waits[4:] == [4000]


@emulated
def test_page_locked_memory_is_kept_while_a_copy_may_use_it():
    from distnn.cuda.staging import _Pinned

    events = [SimpleNamespace(done=False), SimpleNamespace(done=False)]
    streams = [SimpleNamespace(record=lambda event=event: event) for event in events]
    pinned = _Pinned()
    kept = []
    for stream in streams:
        memory = pinned.take(100)
        kept.append(weakref.ref(memory))
        pinned.give(memory, stream)
        del memory
    pinned.take(1)
    assert all(reference() is not None for reference in kept)
    events[0].done = True
    pinned.take(1)
    assert [reference() is None for reference in kept] == [True, False]


@emulated
@over_nccl
def test_a_dtype_that_nccl_cannot_add_is_named_on_all_ranks(transport):
    def work():
        comm = connected()
        a = on_gpu(np.ones(3, np.int16))
        with pytest.raises(CommunicatorError, match="cannot add up arrays of dtype int16; cast"):
            carry_out(comm, lambda t: t.all_reduce(a, "sum"))

    on_ranks(transport, work)


class Watched:
    """A host transport that sees what it is given."""

    def __init__(self, transport, seen):
        self.__dict__.update(_transport=transport, seen=seen)

    def __getattr__(self, name):
        found = getattr(self._transport, name)
        if name not in ("all_reduce", "reduce", "broadcast", "all_gather", "reduce_scatter",
                        "all_to_all", "scatter"):  # fmt: skip
            return found

        def call(*args):
            for arg in args:
                self.seen.extend(map(type, arg) if isinstance(arg, list) else [type(arg)])
            return found(*args)

        return call

    def __setattr__(self, name, value):
        setattr(self._transport, name, value)


@emulated
@over_gpus
def test_mpi_is_never_given_an_address_on_a_device(transport):
    def work():
        world = current_world()
        seen = []
        world.transport = Watched(world.transport, seen)
        comm = connected()
        loss, grads = network(comm.rank)
        loss.forward()
        loss.backward(communicator_callbacks=comm.all_reduce_callback(grads, 30, division=True))
        comm.all_reduce(grads, compression=C.HalfCompression())
        comm.all_reduce(grads, reproducible=True)
        comm.bcast(grads, 0)
        comm.bcast_parameters()
        assert np.ndarray in seen
        assert set(seen) <= {np.ndarray, int, str, type(None)}

    on_ranks(transport, work)


def sharded(comm, grads):
    solver = C.ShardedSolver(S.Momentum(0.1), comm)
    solver.set_parameters(nn.get_parameters())

    def step():
        solver.reduce_gradients(division=True)
        solver.update()

    return step


def lists(comm, grads):
    out = [nn.NdArray(grads[0].shape) for _ in range(comm.size)]
    mine = nn.NdArray(grads[0].shape)

    def exchange():
        comm.bcast(grads, 0)
        comm.reduce(grads, 1, division=True)
        comm.all_gather(grads[0], out)
        comm.reduce_scatter(out, mine)

    return exchange


def synchronized(comm, grads):
    x = nn.Variable((4, 3, 5, 5), need_grad=True)
    x.data = on_device(values(comm.rank, x.shape, np.float32))
    loss = F.mean(PF.sync_batch_normalization(x, comm) ** 2)
    loss.forward()

    def train():
        loss.forward()
        loss.backward()

    return train


OVER_NCCL = {
    "all_reduce": lambda comm, grads: lambda: comm.all_reduce(grads, division=True),
    "torus": lambda comm, grads: (lambda torus: lambda: torus.all_reduce(grads, division=True))(
        C.TorusAllReduce(comm, (1, 2))
    ),
    "sharded solver": sharded,
    "lists": lists,
    "synchronized batch normalization": synchronized,
}


@emulated
@pytest.mark.parametrize("name", OVER_NCCL)
def test_what_the_guide_says_goes_over_nccl_does_not_come_to_the_host(name):
    def work():
        comm = connected()
        loss, grads = network(comm.rank)
        loss.forward()
        loss.backward()
        exchange = OVER_NCCL[name](comm, grads)
        exchange()
        exchange()
        comm.barrier()
        if comm.rank == 0:
            record.clear()
        comm.barrier()
        exchange()
        comm.barrier()

    on_ranks("nccl 2", work)
    moved = [operation[1:3] for operation in record.operations if operation[0] == "copy"]
    assert {kind for kind, _ in moved} <= {"DtoD"}
    assert any(operation[0] == "nccl" for operation in record.operations)


# -- order between the two streams ----------------------------------------------------------------


@emulated
@over_nccl
def test_backward_does_not_wait_for_nccl_and_what_comes_after_does(transport):
    """NCCL is held back: backward returns; the sums are right once it goes on."""
    size = int(transport.split()[1])
    go = threading.Event()
    everybody = threading.Barrier(size)

    def work():
        comm = connected()
        loss, grads = network(comm.rank)
        callback = comm.all_reduce_callback(grads, 10_000)
        loss.forward()
        loss.backward()
        alone = [g.data.copy() for g in grads]
        for grad in grads:
            grad.zero()
        comm.barrier()
        loss.forward()
        nccl.behaviour.held = dict.fromkeys(range(size), go)
        loss.backward(communicator_callbacks=callback)
        everybody.wait()  # all ranks have come back from backward
        assert not go.is_set()
        everybody.wait()
        go.set()
        found = [g.data.copy() for g in grads]
        everybodys = carry_out(
            comm, lambda t: t.all_gather_bytes(b"".join(a.tobytes() for a in alone))
        )
        start = 0
        for array in found:
            stop = start + array.nbytes
            parts = [np.frombuffer(text[start:stop], np.float32) for text in everybodys]
            total = np.sum(parts, axis=0, dtype=np.float64)
            np.testing.assert_allclose(array.ravel(), total, rtol=1e-5, atol=1e-7)
            start = stop

    on_ranks(transport, work)


@emulated
def test_streams_wait_for_each_other_and_nccl_copies_nothing_to_the_host():
    def work():
        comm = connected()
        loss, grads = network(comm.rank)
        callback = comm.all_reduce_callback(grads, 100)
        loss.forward()
        loss.backward(communicator_callbacks=callback)  # connects
        loss.forward()
        comm.barrier()
        record.clear()
        comm.barrier()
        loss.backward(communicator_callbacks=callback)
        comm.barrier()
        return comm._streams

    streams = on_ranks("nccl 2", work)
    operations = list(record.operations)
    assert record.downloads == record.uploads == 0
    for device, found in enumerate(streams):
        assert list(found) == [device]
        address = found[device].ptr
        assert address != 0
        used = [o for o in operations if o[0] == "nccl" and o[2] == address]
        assert len(used) >= 2
        recorded = {o[1]: i for i, o in enumerate(operations) if o[0] == "event"}
        for i, operation in enumerate(operations):
            if operation[0] == "nccl" and operation[2] == address:
                # An event of the stream that computes is waited for, and then one of NCCL's.
                before = [o for o in operations[:i] if o[0] == "wait" and o[2] == address]
                assert operations[recorded[before[-1][1]]][2] == 0
                after = [o for o in operations[i:] if o[0] == "wait" and o[2] == 0]
                assert any(operations[recorded[o[1]]][2] == address for o in after)


@emulated
def test_a_rank_touches_no_other_device_than_its_own(monkeypatch):
    """To make another device current opens a context on it, which takes its memory."""
    import cupy

    chosen = []
    use, leave = cupy.cuda.Device.use, cupy.cuda.Device.__exit__

    def note():
        chosen.append((threading.current_thread().name, cupy.cuda.runtime.getDevice()))

    monkeypatch.setattr(cupy.cuda.Device, "use", lambda self: (use(self), note())[0])
    monkeypatch.setattr(cupy.cuda.Device, "__exit__", lambda self, *_: (leave(self), note())[0])

    def work():
        comm = connected()
        loss, grads = network(comm.rank)
        loss.forward()
        loss.backward(communicator_callbacks=comm.all_reduce_callback(grads, 100))
        return comm.rank

    on_ranks("nccl 3", work)
    for rank in range(3):
        found = {device for name, device in chosen if name == f"distnn communication {rank}"}
        assert found == {rank}


@emulated
@over_gpus
def test_results_are_there_when_they_are_read(transport):
    """A collective that takes long is not overtaken: neither by reads nor by kernels."""

    def work():
        comm = connected()
        nccl.behaviour.delay = 0.05
        a = on_device(np.full(1000, comm.rank + 1.0, np.float32))
        comm.all_reduce(a, division=True)
        doubled = F.mul_scalar(a, 2.0)
        mean = (comm.size + 1) / 2
        assert np.all(doubled.data == 2 * mean)
        assert np.all(a.data == mean)

    on_ranks(transport, work)


@emulated
@over_gpus
def test_the_report_has_the_times_of_the_device(transport):
    def work():
        comm = connected()
        loss, grads = network(comm.rank, 8)
        callback = comm.all_reduce_callback(grads, 200)
        loss.forward()
        loss.backward(communicator_callbacks=callback)
        report = callback.report()
        assert len(report.buckets) == len(callback.buckets) > 2
        for bucket in report.buckets:
            assert 0 <= bucket.ready <= bucket.begin <= bucket.end <= report.backward
        communication = sum(bucket.end - bucket.begin for bucket in report.buckets)
        assert abs(report.communication - communication) < 1e-9
        assert 0 <= report.exposed <= report.backward

    on_ranks(transport, work)
