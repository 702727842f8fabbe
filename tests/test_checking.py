"""DISTNN_CHECK: what ranks compare, and that they must agree on how much."""

from __future__ import annotations

import numpy as np
import pytest
from ranks import TRANSPORTS, connected, on_ranks

import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF
from distnn.communicators.channel import connect
from distnn.errors import ArgumentError, CommunicatorError

everywhere = pytest.mark.parametrize("transport", TRANSPORTS)
several = pytest.mark.parametrize("transport", TRANSPORTS[1:])


class Counting:
    """A transport that counts headers."""

    def __init__(self, transport):
        self._transport = transport
        self.headers = 0

    def __getattr__(self, name):
        return getattr(self._transport, name)

    def largest(self, numbers):
        self.headers += 1
        return self._transport.largest(numbers)


def counted(comm):
    world = comm._groups["world"]
    world.transport = Counting(world.transport)
    return world.transport


def ones(*shape):
    return nn.NdArray.from_numpy_array(np.ones(shape, np.float32))


def network(rank=0, other_from=99):
    """Loss and gradients of two layers; ranks from `other_from` on have another graph."""
    x = nn.Variable.from_numpy_array(np.random.RandomState(rank).randn(4, 3))
    h = PF.affine(x, 3, name="1")
    loss = F.sum(PF.affine(F.tanh(h) if rank < other_from else F.relu(h), 3, name="2") ** 2)
    return loss, [p.grad for p in nn.get_parameters().values()]


@everywhere
@pytest.mark.parametrize(("check", "headers"), [(None, 5 + 1 + 4), (True, 5 + 2 + 4), (False, 1)])
def test_headers_that_only_compare_are_left_out_without_check(
    transport, check, headers, monkeypatch
):
    def work():
        comm = connected(check=check)
        loss, grads = network(comm.rank)
        callback = comm.all_reduce_callback(grads, 1)
        transport = counted(comm)
        comm.barrier()
        comm.bcast(ones(2), 0)
        comm.reduce(ones(2), 0)
        comm.all_gather(ones(2), [ones(2) for _ in range(comm.size)])
        comm.reduce_scatter([ones(2) for _ in range(comm.size)], ones(2))
        loss.forward()
        loss.backward(communicator_callbacks=callback)
        assert len(callback.buckets) == 4
        assert transport.headers == headers

    monkeypatch.delenv("DISTNN_CHECK", raising=False)
    on_ranks(transport, work)


@several
def test_without_headers_gradients_that_are_missing_stay_as_they_are(transport):
    """Which gradients are missing is told by headers: those stay."""

    def work():
        comm = connected(check=False)
        nowhere, somewhere = ones(2), ones(2)
        nowhere.zero()
        if comm.rank:
            somewhere.zero()
        comm.all_reduce([nowhere, somewhere])
        assert nowhere.zeroing
        np.testing.assert_array_equal(somewhere.data, [1, 1])

        h = ones(1, 2)
        for name in ("used by the first rank", "unused"):
            PF.affine(nn.Variable((1, 2)), 2, name=name, with_bias=False)
        first, unused = grads = [p.grad for p in nn.get_parameters().values()]
        with nn.auto_forward():
            x = nn.Variable.from_numpy_array(h.data, need_grad=True)
            if comm.rank == 0:
                x = PF.affine(x, 2, name="used by the first rank", with_bias=False)
            loss = F.sum(x)
        for grad in grads:
            grad.zero()
        loss.backward(communicator_callbacks=comm.all_reduce_callback(grads, 1))
        np.testing.assert_array_equal(first.data, np.ones((2, 2)))
        assert unused.zeroing

    on_ranks(transport, work)


@several
def test_without_headers_the_step_header_still_compares_schedules(transport):
    def work():
        comm = connected(check=False)
        loss, grads = network(comm.rank)
        callback = comm.all_reduce_callback(grads, 10 + comm.rank)
        loss.forward()
        with pytest.raises(CommunicatorError, match="pack_size 10 on rank 0; pack_size 11 on ran"):
            loss.backward(communicator_callbacks=callback)

    on_ranks(transport, work)


@several
@pytest.mark.parametrize("same_graph", [None, False])
def test_with_check_graphs_are_compared_unless_they_may_differ(transport, same_graph):
    def work():
        comm = connected(check=True)
        loss, grads = network(comm.rank, other_from=1)
        callback = comm.all_reduce_callback(grads, same_graph=same_graph)
        loss.forward()
        if same_graph is None:
            with pytest.raises(CommunicatorError, match=r"function 1: .*tanh.* on rank 0;.*relu"):
                loss.backward(communicator_callbacks=callback)
        else:
            loss.backward(communicator_callbacks=callback)

    on_ranks(transport, work)


@several
def test_graphs_of_batches_of_different_size_are_the_same(transport):
    def work():
        comm = connected(check=True)
        x = nn.Variable.from_numpy_array(np.ones((1 + comm.rank, 3)))
        loss = F.sum(PF.affine(x, 2, with_bias=False))
        (grad,) = [p.grad for p in nn.get_parameters().values()]
        loss.forward()
        loss.backward(communicator_callbacks=comm.all_reduce_callback([grad]))
        np.testing.assert_allclose(grad.data, np.full((3, 2), comm.size * (comm.size + 1) / 2))

    on_ranks(transport, work)


@several
@pytest.mark.parametrize("check", [True, False])
def test_ranks_without_data_take_part_whatever_is_compared(transport, check):
    def work():
        comm = connected(check=check)
        loss, grads = network(comm.rank)
        callback = comm.all_reduce_callback(grads, 1)
        sums = []
        for _ in comm.join(range(2 + comm.rank), {callback: lambda: None}):
            for grad in grads:
                grad.zero()
            loss.forward()
            loss.backward(communicator_callbacks=callback)
            sums.append(grads[0].data.copy())
        return sums

    for sums in on_ranks(transport, work):
        assert not np.array_equal(sums[0], np.zeros_like(sums[0]))
        np.testing.assert_array_equal(sums[0], sums[1])
        if len(sums) > 2:  # the first rank's part is gone
            assert np.abs(sums[2] - sums[1]).max() > 1e-3


@several
def test_ranks_with_different_settings_raise_on_all_ranks(transport):
    def work():
        rank = connect().rank
        match = "DISTNN_CHECK, or check=, is 1 on rank 0.*; 0 on rank 1; give all ranks the same"
        with pytest.raises(CommunicatorError, match=match):
            connected(check=rank != 1)

    on_ranks(transport, work)


@everywhere
def test_the_environment_says_it(transport, monkeypatch):
    def check(text):
        if text is None:
            monkeypatch.delenv("DISTNN_CHECK", raising=False)
        else:
            monkeypatch.setenv("DISTNN_CHECK", text)
        return on_ranks(transport, lambda: connected()._check)

    assert set(check("1")) == {True}
    assert set(check("0")) == {False}
    assert set(check("")) == set(check(None)) == {None}
    with pytest.raises(ArgumentError, match="DISTNN_CHECK is 'yes'; set it to 1"):
        check("yes")


@pytest.mark.mpi(min_size=2)
def test_headers_where_mpi_has_no_persistent_collectives():
    from mpi4py import MPI

    from distnn.communicators.mpi import MpiTransport

    class BeforeMpi4:
        def __init__(self, comm):
            self._comm = comm

        def __getattr__(self, name):
            if name == "Allreduce_init":
                raise NotImplementedError("MPI_Allreduce_init")
            return getattr(self._comm, name)

    transport = MpiTransport(MPI, BeforeMpi4(MPI.COMM_WORLD.Dup()))
    last = transport.size - 1
    for k in range(3):
        mine = (transport.rank, -transport.rank, k, -k, transport.rank == 0, False)
        assert transport.largest(mine) == (last, 0, k, -k, 1, 0)
