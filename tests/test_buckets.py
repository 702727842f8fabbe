"""Buckets of the all-reduce callback: what is exchanged when, from where, and how often."""

from __future__ import annotations

import sys
import time
from itertools import pairwise

import numpy as np
import pytest
from ranks import TRANSPORTS, connected, on_ranks

import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF
from distnn.communicators import report
from distnn.communicators.buckets import cut
from distnn.errors import CommunicatorError
from distnn.transfer import address

everywhere = pytest.mark.parametrize("transport", TRANSPORTS)
several = pytest.mark.parametrize("transport", TRANSPORTS[1:])


class Recording:
    """A transport that notes the arrays that are summed."""

    def __init__(self, transport):
        self._transport = transport
        self.sums = []

    def __getattr__(self, name):
        return getattr(self._transport, name)

    def all_reduce(self, array, operation):
        if operation == "sum":
            self.sums.append(array)
        self._transport.all_reduce(array, operation)


def recorded(comm):
    world = comm._groups["world"]
    world.transport = Recording(world.transport)
    return world.transport


def gradients():
    return [p.grad for p in nn.get_parameters().values()]


def examples(rank, step, shape):
    return np.random.RandomState(17 * rank + step).uniform(-1, 1, shape).astype(np.float32)


# -- what is exchanged ---------------------------------------------------------------------------


@everywhere
def test_a_bucket_is_a_range_of_the_gradient_slab_and_is_not_copied(transport):
    def work():
        comm = connected()
        x = nn.Variable((2, 150))
        x.d = examples(comm.rank, 0, x.shape)
        h = x
        for k in range(6):  # 150 x 150 and a bias: 90 KB and 600 bytes each
            h = PF.affine(h, 150, name=str(k))
        loss = F.sum(h)
        grads = gradients()
        callback = comm.all_reduce_callback(grads, 2 * 150 * 151)
        transport = recorded(comm)
        loss.forward()
        loss.backward(communicator_callbacks=callback)
        slab = grads[0]._storage.home.memory
        assert len(transport.sums) == len(callback.buckets) == 4
        for found, bucket in zip(transport.sums, callback.buckets, strict=True):
            first, last = (item._storage.home for item in (bucket[0], bucket[-1]))
            assert found.size == last.stop - first.start
            assert address(found) == address(slab[first.start :])

    on_ranks(transport, work)


def test_the_first_bucket_is_small_and_buckets_go_from_the_end_to_the_beginning():
    items = [nn.NdArray((100,)) for _ in range(40)]
    buckets = cut(items, 800)
    assert [len(bucket) for bucket in buckets] == [1, 8, 8, 8, 8, 7]
    assert [item for bucket in reversed(buckets) for item in bucket] == items


@several
def test_buckets_are_exchanged_in_the_same_order_whatever_order_gradients_complete_in(transport):
    def work():
        comm = connected()
        x = nn.Variable((1, 4))
        x.d = 1
        # Created in the order a, b; used in the other order on odd ranks.
        for name in ("a", "b"):
            PF.affine(x, 4, name=name, with_bias=False)
        h = x
        for name in ("ab", "ba")[comm.rank % 2]:
            h = PF.affine(h, 4, name=name, with_bias=False)
        loss = F.sum(h)
        grads = gradients()
        callback = comm.all_reduce_callback(grads, 1)
        transport = recorded(comm)
        loss.forward()
        loss.backward(communicator_callbacks=callback)
        places = [address(found) for found in transport.sums]
        assert places == [address(g._storage.array) for g in reversed(grads)]

    on_ranks(transport, work)


@several
def test_a_recurrent_weight_is_summed_once_after_its_last_gradient(transport):
    """h_t = tanh(h_{t-1} W + x_t), W used in every step; backpropagation in time by NumPy."""
    steps = 5

    def by_hand(rank, w):
        states, xs = [np.zeros((2, 3))], [examples(rank, t, (2, 3)) for t in range(steps)]
        for x in xs:
            states.append(np.tanh(states[-1] @ w + x))
        total, dh = np.zeros((3, 3)), np.ones((2, 3))
        for t in range(steps - 1, -1, -1):
            pre = dh * (1 - states[t + 1] ** 2)
            total += states[t].T @ pre
            dh = pre @ w.T
        return total

    def work():
        comm = connected()
        h = nn.Variable((2, 3))
        h.d = 0
        with nn.auto_forward():
            for t in range(steps):
                x = nn.Variable.from_numpy_array(examples(comm.rank, t, (2, 3)))
                h = F.tanh(PF.affine(h, 3, name="w", with_bias=False) + x)
            loss = F.sum(h)
        (grad,) = gradients()
        callback = comm.all_reduce_callback([grad], 1)
        transport = recorded(comm)
        grad.zero()
        loss.backward(communicator_callbacks=callback)
        assert len(transport.sums) == 1
        w = nn.get_parameters()["w/affine/W"].d.astype(np.float64)
        expected = sum(by_hand(rank, w) for rank in range(comm.size))
        np.testing.assert_allclose(grad.data, expected, rtol=1e-5, atol=1e-6)

    on_ranks(transport, work)


# -- accumulation --------------------------------------------------------------------------------


def accumulated(size, steps, shape):
    """Gradient of sum(x W) for W (shape[1], 2): column sums of x of all ranks and steps."""
    total = sum(
        examples(rank, step, shape).astype(np.float64).sum(0)
        for rank in range(size)
        for step in range(steps)
    )
    return total[:, None] * np.ones(2)


@everywhere
@pytest.mark.parametrize("dynamic", [False, True])
def test_inside_no_sync_gradients_accumulate_and_are_summed_once_afterwards(transport, dynamic):
    shape, steps = (4, 3), 3

    def work():
        comm = connected()
        x = nn.Variable(shape)
        grads, callback = None, None

        def backward(step):
            nonlocal grads, callback
            x.d = examples(comm.rank, step, shape)
            with nn.auto_forward(dynamic):
                loss = F.sum(PF.affine(x, 2, with_bias=False))
            if callback is None:
                grads = gradients()
                grads[0].zero()
                callback = comm.all_reduce_callback(grads, 1)
            if not dynamic:
                loss.forward()
            loss.backward(communicator_callbacks=callback)

        transport = recorded(comm)
        for _ in range(2):
            with comm.no_sync():
                for step in range(steps - 1):
                    backward(step)
            assert transport.sums == []
            alone = sum(examples(comm.rank, s, shape).sum(0) for s in range(steps - 1))
            np.testing.assert_allclose(grads[0].data[:, 0], alone, rtol=1e-5, atol=1e-6)
            backward(steps - 1)
            assert len(transport.sums) == 1
            expected = accumulated(comm.size, steps, shape)
            np.testing.assert_allclose(grads[0].data, expected, rtol=1e-5, atol=1e-6)
            transport.sums.clear()
            grads[0].zero()

    on_ranks(transport, work)


@several
def test_parameters_used_only_inside_no_sync_are_summed_too(transport):
    def work():
        comm = connected()
        x = nn.Variable((1, 2))
        x.d = comm.rank + 1
        losses = [F.sum(PF.affine(x, 1, name=name, with_bias=False)) for name in "ab"]
        grads = gradients()
        callback = comm.all_reduce_callback(grads, 1)
        for loss in losses:
            loss.forward()
        with comm.no_sync():
            losses[0].backward(communicator_callbacks=callback)
        losses[1].backward(communicator_callbacks=callback)
        expected = comm.size * (comm.size + 1) / 2
        for grad in grads:
            np.testing.assert_array_equal(grad.data.ravel(), [expected, expected])

    on_ranks(transport, work)


@several
def test_no_sync_on_some_ranks_only_raises_on_all(transport):
    def work():
        comm = connected()
        x = nn.Variable((1, 2))
        x.d = 1
        loss = F.sum(PF.affine(x, 1))
        callback = comm.all_reduce_callback(gradients(), 1)
        loss.forward()

        def step():
            if comm.rank:
                loss.backward(communicator_callbacks=callback)
                return
            with comm.no_sync():
                loss.backward(communicator_callbacks=callback)
            comm.barrier()

        with pytest.raises(CommunicatorError, match=r"different collectives.*barrier on rank 0"):
            step()

    on_ranks(transport, work)


def test_no_sync_ends_with_an_exception_and_may_be_nested():
    comm = connected()
    x = nn.Variable((1, 2))
    x.d = 1
    loss = F.sum(PF.affine(x, 1))
    callback = comm.all_reduce_callback(gradients(), 1)
    loss.forward()

    def step():
        with comm.no_sync():
            with comm.no_sync():
                pass
            loss.backward(communicator_callbacks=callback)
            raise KeyError

    with pytest.raises(KeyError):
        step()
    with pytest.raises(CommunicatorError, match="nothing was reduced yet"):
        callback.report()
    loss.backward(communicator_callbacks=callback)
    assert len(callback.report().buckets) == 2


# -- what it cost --------------------------------------------------------------------------------


@several
def test_buckets_are_exchanged_while_backward_goes_on_and_the_report_says_when(transport):
    def work():
        comm = connected()
        h = x = nn.Variable((1, 3))
        x.d = 1
        for name in "abc":
            h = PF.affine(h, 3, name=name, with_bias=False)
        loss = F.sum(h)
        callback = comm.all_reduce_callback(gradients(), 1)
        loss.forward()
        comm.barrier()
        calls = 0

        def before(function):
            """Backward of each layer begins when the gradient of the one before was exchanged."""
            nonlocal calls
            calls += 1
            deadline = time.monotonic() + 20
            while not all(ticket.done() for ticket in callback._tickets):
                assert time.monotonic() < deadline
                time.sleep(0.001)
            time.sleep(0.01)

        begin = time.perf_counter()
        loss.backward(communicator_callbacks=callback, function_pre_hook=before)
        seconds = time.perf_counter() - begin
        report = callback.report()
        assert calls == 4  # the sum and three layers
        assert 0.04 <= report.backward <= seconds
        assert len(report.buckets) == 3
        for k, times in enumerate(report.buckets):
            assert times.ready >= 0.01 * (k + 2)
            assert times.ready <= times.begin <= times.end <= report.backward
        for times, following in pairwise(report.buckets):
            assert times.end <= following.ready
        assert 0 < report.exposed <= report.backward - report.buckets[2].ready
        assert 0 < sum(t.end - t.begin for t in report.buckets) <= report.communication
        assert f"{report.hidden * 100:.0f} % hidden" in str(report)

    on_ranks(transport, work)


def test_the_share_that_was_hidden():
    def hidden(communication, exposed):
        return report.OverlapReport(1.0, communication, exposed, ()).hidden

    assert hidden(0.4, 0.1) == 0.75
    assert hidden(0.4, 0.5) == 0  # the main thread waited for more than that
    assert hidden(0.0, 0.0) == 1


@pytest.mark.parametrize(("size", "turns"), [(100, False), (1 << 20, True)])
def test_where_much_is_exchanged_python_gives_way_to_the_communication_thread(size, turns):
    usual = sys.getswitchinterval()
    comm = connected()
    world = comm._groups["world"]
    found = []

    class Looking(Recording):
        def all_reduce(self, array, operation):
            found.append(sys.getswitchinterval())

    world.transport = Looking(world.transport)
    gradient = nn.parameter.get_parameter_or_create("w", (size,)).grad
    gradient.fill(1)
    callback = comm.all_reduce_callback([gradient], same_graph=False)
    callback.begin([gradient._storage], None)
    callback.finish()
    assert [interval < usual for interval in found] == [turns]
    until = time.monotonic() + 10
    while sys.getswitchinterval() != usual and time.monotonic() < until:
        time.sleep(0.01)
    assert sys.getswitchinterval() == usual
