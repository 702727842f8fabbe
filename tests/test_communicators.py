"""Every collective over every transport, against NumPy on the inputs of all ranks."""

from __future__ import annotations

import numpy as np
import pytest
from ranks import MPI, TRANSPORTS, connected, on_device, on_ranks

import distnn as nn
import distnn.communicators as C
import distnn.functions as F
import distnn.parametric_functions as PF
from distnn.context import current_world
from distnn.errors import (
    ArgumentError,
    CommunicatorError,
    DeadCommunicatorError,
    DtypeError,
    ShapeError,
)

everywhere = pytest.mark.parametrize("transport", TRANSPORTS)
several = pytest.mark.parametrize("transport", TRANSPORTS[1:])


def values(rank, shape=(3, 4), dtype=np.float32):
    """What a rank brings; every rank knows that of every other."""
    return np.random.RandomState(100 + rank).uniform(-1, 1, shape).astype(dtype)


def array(rank, shape=(3, 4), dtype=np.float32):
    return on_device(values(rank, shape, dtype))


def total(size, shape=(3, 4), dtype=np.float32):
    return sum(values(r, shape, dtype).astype(np.float64) for r in range(size))


@everywhere
def test_ranks_know_who_they_are(transport):
    def work():
        comm = connected()
        return comm.rank, comm.size, comm.local_rank

    found = on_ranks(transport, work)
    assert len({rank for rank, _, _ in found}) == len(found)
    assert all(rank == local for rank, _, local in found)  # one machine


@everywhere
@pytest.mark.parametrize("division", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_all_reduce_sums_one_array(transport, division, dtype):
    def work():
        comm = connected()
        a = array(comm.rank, dtype=dtype)
        comm.all_reduce(a, division=division)
        expected = total(comm.size, dtype=dtype) / (comm.size if division else 1)
        rtol = 4 * np.finfo(dtype).eps
        np.testing.assert_allclose(a.data, expected, rtol=rtol, atol=rtol)
        assert a.dtype == dtype

    on_ranks(transport, work)


@everywhere
def test_all_reduce_sums_lists_of_small_and_large_arrays(transport):
    shapes = [(5,), (300, 300), (1,), (2, 2), (70_000,)]

    def work():
        comm = connected()
        arrays = [array(comm.rank, s) for s in shapes]
        comm.all_reduce(arrays)
        for a, s in zip(arrays, shapes, strict=True):
            np.testing.assert_allclose(a.data, total(comm.size, s), rtol=1e-5, atol=1e-6)

    on_ranks(transport, work)


@everywhere
def test_all_reduce_of_integers_is_exact(transport):
    def work():
        comm = connected()
        a = on_device(np.array([2**40 + comm.rank], np.int64))
        comm.all_reduce(a)
        assert a.data[0] == sum(2**40 + r for r in range(comm.size))

    on_ranks(transport, work)


@everywhere
def test_reduce_changes_the_array_of_one_rank_only(transport):
    def work():
        comm = connected()
        root = comm.size - 1
        a = array(comm.rank)
        comm.reduce(a, root, division=True)
        expected = total(comm.size) / comm.size if comm.rank == root else values(comm.rank)
        np.testing.assert_allclose(a.data, expected, rtol=1e-6, atol=1e-7)

    on_ranks(transport, work)


@everywhere
def test_bcast_copies_from_one_rank(transport):
    def work():
        comm = connected()
        arrays = [array(comm.rank), array(comm.rank, (7,))]
        comm.bcast(arrays, comm.size - 1)
        np.testing.assert_array_equal(arrays[0].data, values(comm.size - 1))
        np.testing.assert_array_equal(arrays[1].data, values(comm.size - 1, (7,)))

    on_ranks(transport, work)


@everywhere
def test_all_gather_collects_by_rank(transport):
    def work():
        comm = connected()
        out = [nn.NdArray((3, 4)) for _ in range(comm.size)]
        comm.all_gather(array(comm.rank), out)
        for r, a in enumerate(out):
            np.testing.assert_array_equal(a.data, values(r))

    on_ranks(transport, work)


@everywhere
@pytest.mark.parametrize("division", [False, True])
def test_reduce_scatter_gives_each_rank_its_sum(transport, division):
    def work():
        comm = connected()

        def part(rank, i):
            return values(10 * rank + i)

        mine = [on_device(part(comm.rank, i)) for i in range(comm.size)]
        out = nn.NdArray((3, 4))
        comm.reduce_scatter(mine, out, division=division)
        expected = sum(part(r, comm.rank).astype(np.float64) for r in range(comm.size))
        expected = expected / (comm.size if division else 1)
        np.testing.assert_allclose(out.data, expected, rtol=1e-5, atol=1e-6)

    on_ranks(transport, work)


@everywhere
def test_barrier_comes_back(transport):
    on_ranks(transport, lambda: connected().barrier())


@several
def test_a_group_reduces_among_its_ranks_only(transport):
    def work():
        comm = connected()
        ranks = list(range(1, comm.size))
        assert comm.new_group(("others", ranks)) == "others"
        assert comm.find_group("others") == ranks
        assert comm.find_group("unknown") == []
        assert comm.list_groups() == ["world", "others"]
        a = array(comm.rank)
        if comm.rank:
            comm.all_reduce(a, division=True, group="others")
            expected = sum(values(r).astype(np.float64) for r in ranks) / len(ranks)
        else:
            expected = values(0)
        np.testing.assert_allclose(a.data, expected, rtol=1e-5, atol=1e-6)
        comm.barrier()

    on_ranks(transport, work)


@several
def test_an_array_flagged_zero_everywhere_stays_flagged_elsewhere_counts_as_zeros(transport):
    def work():
        comm = connected()
        nowhere, somewhere = nn.NdArray((2,)), nn.NdArray((2,))
        nowhere.zero()
        somewhere.zero()
        if comm.rank == 1:
            somewhere.data = np.array([1.0, 2.0], np.float32)
        comm.all_reduce([nowhere, somewhere])
        assert nowhere.zeroing
        np.testing.assert_array_equal(somewhere.data, [1.0, 2.0])

    on_ranks(transport, work)


def small_network(rank):
    """Loss and gradients of a network on this rank's data, with a layer that nobody uses."""
    PF.affine(nn.Variable((1, 2)), 2, name="unused")
    x = nn.Variable.from_numpy_array(values(rank, (4, 6)))
    h = F.tanh(PF.affine(x, 5, name="1"))
    h = F.tanh(PF.affine(h, 5, name="shared"))
    h = F.tanh(PF.affine(h, 5, name="shared"))
    loss = F.mean(PF.affine(h, 3, name="2") ** 2)
    return loss, [p.grad for p in nn.get_parameters().values()]


def gradients_of(rank):
    """Gradients of one rank's data, computed alone."""
    nn.clear_parameters()
    nn.seed(1)
    loss, grads = small_network(rank)
    loss.forward()
    loss.backward()
    found = [g.get_data("r").copy() for g in grads]
    nn.clear_parameters()
    nn.seed(1)
    return found


@everywhere
@pytest.mark.parametrize("pack_size", [1, 20, 10_000])
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_callback_sums_gradients_while_backward_runs(transport, pack_size, dynamic):
    def work():
        comm = connected()
        everybodys = [gradients_of(r) for r in range(comm.size)]
        with nn.auto_forward(dynamic):
            loss, grads = small_network(comm.rank)
        callback = comm.all_reduce_callback(grads, pack_size, division=True)
        for _ in range(3):
            if not dynamic:
                loss.forward()
            for g in grads:
                g.zero()
            loss.backward(communicator_callbacks=callback)
            for k, g in enumerate(grads):
                expected = sum(e[k].astype(np.float64) for e in everybodys) / comm.size
                np.testing.assert_allclose(g.get_data("r"), expected, rtol=1e-5, atol=1e-7)
        assert grads[0].zeroing  # the layer that nobody used
        assert grads[1].zeroing

    on_ranks(transport, work)


def test_the_number_of_buckets_follows_the_pack_size():
    comm = connected()
    grads = [nn.NdArray((10,)) for _ in range(16)]
    counts = [len(comm.all_reduce_callback(grads, size).buckets) for size in (10, 40, 1000)]
    assert counts == [16, 5, 2]  # the first bucket is an eighth of the others


@several
def test_graphs_may_differ_between_ranks_if_the_parameters_agree(transport):
    """Stochastic depth: a rank that skips a layer contributes zeros to it."""

    def work():
        comm = connected()
        x = nn.Variable.from_numpy_array(values(comm.rank, (4, 3)))
        grads = []
        for name in ("a", "b"):
            PF.affine(x, 3, name=name, with_bias=False)
        grads = [p.grad for p in nn.get_parameters().values()]
        weights = {k: p.d.astype(np.float64) for k, p in nn.get_parameters().items()}
        with nn.auto_forward():
            h = PF.affine(x, 3, name="a", with_bias=False)
            if comm.rank == 1:
                h = PF.affine(h, 3, name="b", with_bias=False)
            loss = F.sum(h)
        for g in grads:
            g.zero()
        callback = comm.all_reduce_callback(grads, 2, same_graph=False)
        loss.backward(communicator_callbacks=callback)
        x1 = values(1, (4, 3)).astype(np.float64)
        expected = (x1 @ weights["a/affine/W"]).sum(0)[:, None] * np.ones((1, 3))
        np.testing.assert_allclose(grads[1].get_data("r"), expected, rtol=1e-5, atol=1e-6)

    on_ranks(transport, work)


# -- what goes wrong ---------------------------------------------------------------------------


def raised_on_all_ranks(transport, function, match, kind=CommunicatorError):
    """Every rank raises; the message is checked on each."""

    def work():
        with pytest.raises(kind, match=match):
            function()
        return True

    assert all(on_ranks(transport, work))


@several
@pytest.mark.parametrize("same_graph", [False, True])
def test_different_graphs_raise_on_all_ranks_only_where_that_is_asked_for(transport, same_graph):
    def work():
        comm = connected()
        x = nn.Variable.from_numpy_array(np.ones((2, 3)))
        h = PF.affine(x, 3)
        activate = F.tanh if comm.rank == 0 else F.relu
        loss = F.mean(activate(h))
        callback = comm.all_reduce_callback(
            [p.grad for p in nn.get_parameters().values()], same_graph=same_graph
        )
        for _ in range(2):
            loss.forward()
            if not same_graph:
                loss.backward(communicator_callbacks=callback)
                continue
            with pytest.raises(CommunicatorError, match=r"function 1: .*tanh.* on rank 0;.*relu"):
                loss.backward(communicator_callbacks=callback)

    on_ranks(transport, work)


@several
def test_lists_of_different_lengths_raise_on_all_ranks_and_name_the_array(transport):
    def work():
        comm = connected()
        comm.all_reduce([nn.NdArray((2,)) for _ in range(3 if comm.rank else 2)])

    raised_on_all_ranks(
        transport, work, r"disagree in array 2: nothing on rank 0; \(2,\) float32 on"
    )


@several
def test_swapped_parameters_raise_on_all_ranks_and_are_named(transport):
    def work():
        comm = connected()
        for name in ("first", "second"):
            PF.affine(nn.Variable((1, 4)), 4, name=name, with_bias=False)
        grads = [p.grad for p in nn.get_parameters().values()]
        comm.all_reduce(grads if comm.rank else grads[::-1])

    match = r"rank \d: \[all_reduce\].* second/affine/W \(4, 4\) float32 on rank 0; first/affine/W"
    raised_on_all_ranks(transport, work, match)


@several
@pytest.mark.parametrize("callback", [False, True])
def test_parameters_created_in_another_order_raise_on_all_ranks(transport, callback):
    def work():
        comm = connected()
        for i in (0, 1, 2) if comm.rank == 0 else (1, 0, 2):
            PF.affine(nn.Variable((2, 3)), 3, name=str(i))
        grads = [p.grad for _, p in sorted(nn.get_parameters().items())]
        for grad in grads:
            grad.fill(comm.rank)
        total = F.sum(PF.affine(nn.Variable((2, 3)), 3, name="0"))
        total.forward()

        def reduce():
            if callback:
                total.backward(communicator_callbacks=comm.all_reduce_callback(grads))
            else:
                comm.all_reduce(grads)

        for _ in range(2):
            with pytest.raises(CommunicatorError, match="same order on all ranks"):
                reduce()

    on_ranks(transport, work)


@several
def test_different_dtypes_raise_on_all_ranks(transport):
    def work():
        comm = connected()
        comm.all_reduce(array(comm.rank, dtype=np.float64 if comm.rank == 1 else np.float32))

    raised_on_all_ranks(transport, work, "float64 on rank 1")


@several
def test_different_collectives_raise_on_all_ranks_and_are_named(transport):
    def work():
        comm = connected()
        if comm.rank:
            comm.bcast(array(0), 0)
        else:
            comm.all_reduce(array(0))

    raised_on_all_ranks(
        transport, work, "different collectives: all_reduce on rank 0; bcast from rank 0 on rank 1"
    )


@several
def test_after_a_disagreement_the_communicator_still_works(transport):
    def work():
        comm = connected()
        with pytest.raises(CommunicatorError):
            comm.all_reduce(nn.NdArray((2 if comm.rank else 3,)))
        a = array(comm.rank)
        comm.all_reduce(a)
        np.testing.assert_allclose(a.data, total(comm.size), rtol=1e-5, atol=1e-6)

    on_ranks(transport, work)


@several
def test_after_disagreements_in_backward_training_goes_on(transport):
    """In the header of the step, or of a bucket, with others queued behind: all ranks go on."""

    def work():
        comm = connected()
        everybodys = [gradients_of(r) for r in range(comm.size)]
        loss, grads = small_network(comm.rank)
        good = comm.all_reduce_callback(grads, 20)
        other = comm.all_reduce_callback(grads, 10 + comm.rank)
        for attempt in range(4):
            loss.forward()
            if attempt % 2:
                with pytest.raises(CommunicatorError, match="pack_size 10 on rank 0"):
                    loss.backward(communicator_callbacks=other)
            else:
                hook = None if comm.rank else lambda function: comm.barrier()
                match = "different collectives: barrier on rank 0; bucket 0 of all_reduce_callback"
                with pytest.raises(CommunicatorError, match=match):
                    loss.backward(communicator_callbacks=good, function_post_hook=hook)
            for g in grads:
                g.zero()
            loss.backward(communicator_callbacks=good)
            for k, g in enumerate(grads):
                expected = sum(e[k].astype(np.float64) for e in everybodys)
                np.testing.assert_allclose(g.get_data("r"), expected, rtol=1e-5, atol=1e-7)
            figures = comm.all_reduce_scalars({"loss": comm.rank})
            assert figures == {"loss": (comm.size - 1) / 2}

    on_ranks(transport, work)


@several
def test_after_a_disagreement_in_a_group_the_others_find_the_common_order_again(transport):
    def work():
        comm = connected()
        comm.new_group(("pair", [0, 1]))
        if comm.rank < 2:
            with pytest.raises(CommunicatorError, match=r"disagree in array 0: \(3,\)"):
                comm.all_reduce(nn.NdArray((3 - comm.rank,)), group="pair")
        a = array(comm.rank)
        comm.all_reduce(a)
        np.testing.assert_allclose(a.data, total(comm.size), rtol=1e-5, atol=1e-6)
        if comm.rank < 2:
            a = array(comm.rank)
            comm.all_reduce(a, group="pair")
            np.testing.assert_allclose(a.data, total(2), rtol=1e-5, atol=1e-6)

    on_ranks(transport, work)


@pytest.mark.parametrize("transport", ["threads 2", "threads 4", MPI])
def test_without_headers_a_collective_that_was_left_out_is_noticed_and_then_forgotten(transport):
    def work():
        comm = connected(check=False)
        if comm.rank:  # as if its reduce had ended without the others
            comm._groups["world"].count.number += 1
        with pytest.raises(CommunicatorError, match=r"different numbers.* 1 on rank 0; 2 on"):
            comm.all_reduce(array(comm.rank))
        a = array(comm.rank)
        comm.all_reduce(a)
        np.testing.assert_allclose(a.data, total(comm.size), rtol=1e-5, atol=1e-6)

    on_ranks(transport, work)


@several
def test_different_schedules_of_a_callback_raise_on_all_ranks(transport):
    def work():
        comm = connected()
        loss, grads = small_network(comm.rank)
        callback = comm.all_reduce_callback(grads, 10 + comm.rank)
        loss.forward()
        loss.backward(communicator_callbacks=callback)

    raised_on_all_ranks(transport, work, "pack_size 10 on rank 0; pack_size 11 on rank 1")


@several
def test_a_rank_outside_a_group_is_told_so(transport):
    def work():
        comm = connected()
        comm.new_group(("first", [0]))
        if comm.rank:
            with pytest.raises(ArgumentError, match=r"rank 1|rank \d is not in group 'first'"):
                comm.all_reduce(array(0), group="first")

    on_ranks(transport, work)


@pytest.mark.parametrize(
    ("call", "kind", "match"),
    [
        (lambda c: c.all_reduce(array(0), group="nobody"), ArgumentError, "'nobody'.*new_group"),
        (lambda c: c.all_reduce([np.zeros(2)]), DtypeError, "array 0 is ndarray; pass NdArrays"),
        (
            lambda c: c.all_reduce(on_device(np.array([1])), division=True),
            DtypeError,
            "int64, which cannot be divided",
        ),
        (lambda c: c.bcast(array(0), 3), ArgumentError, r"src is 3; group 'world' has ranks \[0\]"),
        (lambda c: c.reduce(array(0), -1), ArgumentError, "dst is -1"),
        (lambda c: c.new_group(("g", [0, 5])), ArgumentError, "ranks 0 to 0"),
        (lambda c: c.new_group(("g", [])), ArgumentError, "one or more"),
        (lambda c: c.new_group(("world", [0])), ArgumentError, "exists"),
        (lambda c: c.all_gather(array(0), []), ShapeError, "0 arrays but the group has 1"),
        (lambda c: c.all_gather(array(0), [nn.NdArray((2,))]), ShapeError, r"\(2,\) but ndarray"),
        (lambda c: c.all_reduce_callback([], 0), ArgumentError, "pack_size is 0"),
        (lambda c: c.init(), CommunicatorError, "connected already"),
        (lambda c: c.allreduce(), ArgumentError, "add_context_and_parameters"),
    ],
)
def test_bad_arguments_are_named(call, kind, match):
    with pytest.raises(kind, match=match):
        call(connected())


def test_a_communicator_wants_init_first():
    with pytest.raises(CommunicatorError, match="call init"):
        _ = C.MultiProcessDataParallelCommunicator().size


@pytest.mark.parametrize("end", ["close", "abort"])
def test_nothing_can_be_exchanged_after_the_end(end):
    comm = connected()
    if end == "close":
        comm.close()
    else:
        with pytest.raises(SystemExit):
            comm.abort(3)
    with pytest.raises(DeadCommunicatorError, match=rf"\[all_reduce\].*{end}\("):
        comm.all_reduce(array(1))


def test_a_late_rank_is_named_within_the_deadline():
    import time

    def work():
        comm = connected(timeout=0.5)
        if comm.rank == 2:
            time.sleep(2)
            return
        begin = time.monotonic()
        with pytest.raises(
            CommunicatorError, match=r"rank 2 is late|waited 0.5 seconds.*for rank 2"
        ):
            comm.all_reduce(array(comm.rank))
        assert time.monotonic() - begin < 1.5
        with pytest.raises(CommunicatorError, match="communicator is dead"):
            comm.all_reduce(array(comm.rank))

    C.run_threads(work, 3)


@pytest.mark.parametrize("nth", range(1, 30))
def test_a_failing_collective_raises_on_every_rank_whichever_it_is(nth):
    """Two training steps with a callback, groups and a bcast: no collective can hang a rank."""
    reached = []

    def work():
        try:
            comm = connected(timeout=20)
            comm.new_group(("pair", [0, 1]))
            loss, grads = small_network(comm.rank)
            comm.bcast([p.data for p in nn.get_parameters().values()], 0)
            callback = comm.all_reduce_callback(grads, 30, division=True)
            for _ in range(2):
                loss.forward()
                loss.backward(communicator_callbacks=callback)
            comm.barrier()
        except (CommunicatorError, C.InjectedFailure):  # the latter inside init
            reached.append(current_world().transport.rank)
            raise

    try:
        C.run_threads(work, 3, fail=(1, nth), timeout=30)
    except (CommunicatorError, C.InjectedFailure):
        assert sorted(reached) == [0, 1, 2]
    else:
        assert nth > 10  # the whole run has fewer collectives than n
        assert reached == []
