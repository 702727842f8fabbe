"""Lists of arrays as ranks exchange them: what is remembered of a list, and for how long."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from ranks import TRANSPORTS, connected, on_ranks

import distnn as nn
from distnn.communicators.exchange import Description, Ranges
from distnn.transfer import address, to_host

several = pytest.mark.parametrize("transport", TRANSPORTS[1:])


def gradients(sizes):
    """Gradients of new parameters, neighbours in a slab, with values in memory."""
    found = [
        nn.parameter.get_parameter_or_create(str(k), (size,)).grad for k, size in enumerate(sizes)
    ]
    for k, grad in enumerate(found):
        grad.data = np.full(grad.shape, k + 1, np.float32)
    return found


def test_neighbours_in_a_slab_are_one_range_that_is_remembered():
    grads = gradients([16, 32, 16])
    ranges = Ranges()
    (found,) = ranges.of(grads)
    np.testing.assert_array_equal(to_host(found), np.repeat([1, 2, 3], [16, 32, 16]))
    assert ranges.of(grads)[0] is found


def test_a_remembered_range_has_pending_values_written():
    grads = gradients([16, 16])
    ranges = Ranges()
    ranges.of(grads)
    grads[1].fill(7)
    (found,) = ranges.of(grads)
    np.testing.assert_array_equal(to_host(found), np.repeat([1, 7], 16))


def test_an_array_that_has_left_its_slab_is_found_where_it_is():
    grads = gradients([16, 16, 16])
    ranges = Ranges()
    ranges.of(grads)
    grads[1].cast(np.float64)
    found = ranges.of(grads)
    assert [part.dtype for part in found] == [np.float32, np.float64, np.float32]
    assert address(found[1]) == address(grads[1]._storage.array)
    grads[1].cast(np.float32)  # comes back
    assert len(ranges.of(grads)) == 1


def test_some_of_a_list_have_ranges_of_their_own():
    grads = gradients([16, 16, 16])
    ranges = Ranges()
    for chosen in (grads, grads[:1], grads[1:], [grads[0], grads[2]], [], grads):
        expected = [values for g in chosen for values in g.data]
        found = map(to_host, ranges.of(chosen))
        np.testing.assert_array_equal(np.concatenate([np.empty(0), *found]), expected)


@pytest.mark.parametrize("arrays", ["slab", "apart"])
def test_what_is_remembered_of_a_list_keeps_no_array_alive(arrays):
    comm = connected()
    items = gradients([8]) if arrays == "slab" else [nn.NdArray.from_numpy_array(np.ones(8))]
    comm.all_reduce(items)
    (known,) = comm._known
    assert known.fits(items)
    references = [weakref.ref(items[0]), weakref.ref(items[0]._storage)]
    if arrays == "apart":
        references.append(weakref.ref(items[0]._storage.array))
    del items
    nn.clear_parameters()
    gc.collect()
    assert [reference() for reference in references] == [None] * len(references)


def test_a_list_is_another_one_if_an_array_has_changed_or_died():
    items = [nn.NdArray.from_numpy_array(np.ones(3)) for _ in range(3)]
    known = Description(items)
    assert known.fits(items)
    assert known.fits(list(items))
    assert not known.fits(items[:2])
    assert not known.fits(items[::-1])
    items[0].cast(np.float32)
    assert not known.fits(items)
    known = Description(items)
    assert known.fits(items)
    del items[2]
    gc.collect()
    assert not known._alive  # another array may get the address of the dead one
    assert not known.fits([*items, nn.NdArray.from_numpy_array(np.ones(3))])


@several
def test_sums_follow_gradients_that_change_their_place_or_are_pending(transport):
    def work():
        comm = connected()
        grads = gradients([40, 24, 8])
        callback = comm.all_reduce_callback(grads, 1000, same_graph=False)
        reductions = [lambda: comm.all_reduce(grads), lambda: exchange_by(callback)]

        def exchange_by(callback):
            callback.begin([g._storage for g in grads], None)
            callback.finish()

        for reduce in reductions * 2:
            for change in (None, "pending", "cast", "back"):
                for k, grad in enumerate(grads):
                    grad.data = np.full(grad.shape, k + comm.rank, grad.dtype)
                if change == "pending":
                    grads[1].fill(1 + comm.rank)
                elif change == "cast":
                    grads[1].cast(np.float64)
                elif change == "back":
                    grads[1].cast(np.float32)
                reduce()
                ranks = comm.size * (comm.size - 1) / 2
                for k, grad in enumerate(grads):
                    np.testing.assert_array_equal(grad.data, k * comm.size + ranks)

    on_ranks(transport, work)
