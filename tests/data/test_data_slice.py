"""DataIterator.slice: which samples each slice has, over the epochs."""

import logging

import numpy as np
import pytest

from distnn.data import DataIterator, DataSource, SimpleDataSource, data_iterator_simple
from distnn.errors import ArgumentError

THREAD = pytest.mark.parametrize("use_thread", [False, True], ids=["inline", "thread"])


def number(i):
    return (i,)


def make(n, batch_size=1, **arguments):
    return data_iterator_simple(number, n, batch_size, **arguments)


def take(iterator, count):
    return np.concatenate([iterator.next()[0] for _ in range(count)]).tolist()


def slices(iterator, number_of, **arguments):
    return [
        iterator.slice(None, num_of_slices=number_of, slice_pos=i, **arguments)
        for i in range(number_of)
    ]


# NNabla 1.39's own slices of data_iterator_simple(number, n, 1), found by running it
NNABLA = [
    (12, 3, False, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]),
    (10, 3, False, [[0, 1, 2, 3], [4, 5, 6, 7], [6, 7, 8, 9]]),
    (10, 4, False, [[0, 1, 2], [3, 4, 5], [6, 7, 8], [7, 8, 9]]),
    (11, 4, False, [[0, 1, 2], [3, 4, 5], [6, 7, 8], [8, 9, 10]]),
    (5, 4, False, [[0, 1], [2, 3], [3, 4], [1, 2]]),
    (3, 4, False, [[0], [1], [2], [0]]),
    (10, 3, True, [[0, 1, 2], [3, 4, 5], [6, 7, 8]]),
    (11, 4, True, [[0, 1], [2, 3], [4, 5], [6, 7]]),
]


@THREAD
@pytest.mark.parametrize(("n", "number_of", "drop_last", "expected"), NNABLA)
def test_slices_are_those_of_nnabla(n, number_of, drop_last, expected, use_thread):
    parts = slices(make(n, use_thread=use_thread), number_of, drop_last=drop_last)
    assert [part.size for part in parts] == [len(samples) for samples in expected]
    assert [take(part, part.size) for part in parts] == expected


@THREAD
def test_slices_share_no_sample_in_any_epoch_even_if_one_runs_ahead(use_thread):
    rng = np.random.RandomState(313)
    orders = [rng.permutation(12) for _ in range(5)]
    first, second = slices(make(12, 3, shuffle=True, use_thread=use_thread), 2)
    assert take(first, 10) == np.concatenate([order[:6] for order in orders]).tolist()
    assert take(second, 10) == np.concatenate([order[6:] for order in orders]).tolist()


def test_a_slice_that_lags_too_far_is_told_so():
    first, second = slices(make(4, 2, shuffle=True, use_thread=False), 2)
    take(first, 20)
    text = r"\[SimpleDataSource\] the order of epoch 0 is wanted but those of epochs 6 to 20 are"
    with pytest.raises(ArgumentError, match=text):
        second.next()


def test_slices_by_range_start_and_end_where_asked():
    part = make(10).slice(None, slice_start=2, slice_end=5)
    assert take(part, 6) == [2, 3, 4, 2, 3, 4]


@THREAD
def test_a_slice_begins_with_epoch_0_whatever_its_parent_has_done(use_thread):
    parent = make(8, 2, shuffle=True, use_thread=use_thread)
    take(parent, 5)
    part = parent.slice(None, num_of_slices=2, slice_pos=1)
    assert (part.epoch, part.position) == (0, 0)
    assert take(part, 2) == np.random.RandomState(313).permutation(8)[4:].tolist()


@THREAD
def test_parent_and_slices_do_not_disturb_each_other(use_thread):
    rng = np.random.RandomState(313)
    orders = [rng.permutation(8) for _ in range(3)]
    parent = make(8, 2, shuffle=True, use_thread=use_thread)
    (part,) = slices(parent, 1)
    found = [(parent.next()[0].tolist(), part.next()[0].tolist()) for _ in range(12)]
    expected = np.concatenate(orders).reshape(12, 2).tolist()
    assert found == [(batch, batch) for batch in expected]


@THREAD
def test_a_slice_survives_its_parent(use_thread):
    parent = make(8, 2, use_thread=use_thread)
    parent.next()
    part = parent.slice(None, num_of_slices=2, slice_pos=1)
    parent.close()
    assert take(part, 4) == [4, 5, 6, 7] * 2


def test_ranks_that_shuffle_in_reset_have_disjoint_slices_in_every_epoch():
    class Shuffled(DataSource):
        def __init__(self):
            super().__init__(shuffle=True)
            self._size, self._variables = 8, ("x",)
            self.reset()

        def reset(self):
            self._indexes = self._rng.permutation(8)
            super().reset()

        def _get_data(self, position):
            return (self._indexes[position],)

    ranks = [
        DataIterator(Shuffled(), 2).slice(None, num_of_slices=2, slice_pos=rank) for rank in (0, 1)
    ]
    epochs = [[take(part, 2) for part in ranks] for _ in range(4)]
    assert [sorted(a + b) for a, b in epochs] == [list(range(8))] * 4
    assert len({tuple(a) for a, b in epochs}) > 1


@THREAD
def test_a_cached_slice_loads_and_shuffles_only_its_own_samples(use_thread):
    calls = []

    def load(i):
        calls.append(i)
        return (i,)

    parent = data_iterator_simple(load, 10, 5, shuffle=True, use_thread=use_thread)
    part = parent.slice(np.random.RandomState(3), slice_start=5, slice_end=10, use_cache=True)
    own = np.random.RandomState(313).permutation(10)[5:]
    rng = np.random.RandomState(3)
    expected = [*own, *own[rng.permutation(5)], *own[rng.permutation(5)]]
    assert take(part, 3) == expected
    assert sorted(calls[1:]) == sorted(own)


def test_a_slice_keeps_batch_size_and_use_thread_and_leaves_callbacks_behind():
    events = []
    parent = make(8, 2, use_thread=False, epoch_end_callbacks=[events.append])
    part = parent.slice(None, num_of_slices=4, slice_pos=0)
    take(part, 3)
    assert (part.batch_size, part._prefetcher, events) == (2, None, [])


# -- what is logged ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drop_last", "text"),
    [
        (
            False,
            "[DataIterator.slice] slice 2 of 3: 4 samples, positions 6 to 9; the 10 samples are "
            "not divisible by 3, so 2 places hold a sample of another slice",
        ),
        (
            True,
            "[DataIterator.slice] slice 2 of 3: 3 samples, positions 6 to 8; the 10 samples are "
            "not divisible by 3, so 1 of them are in no slice",
        ),
    ],
)
def test_slices_of_data_that_are_not_divisible_say_so_once(drop_last, text, caplog):
    caplog.set_level(logging.INFO, "distnn")
    part = make(10).slice(None, num_of_slices=3, slice_pos=2, drop_last=drop_last)
    take(part, 8)
    assert [record.getMessage() for record in caplog.records] == [text]
    assert caplog.records[0].levelno == logging.WARNING


def test_slices_of_data_that_are_divisible_say_nothing(caplog):
    caplog.set_level(logging.INFO, "distnn")
    slices(make(12), 3)
    assert caplog.records == []


# -- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("slice_pos", [-1, 3, 10])
def test_a_slice_pos_out_of_range_is_refused(slice_pos):
    text = (
        rf"\[DataIterator\.slice\] slice_pos is {slice_pos} but num_of_slices is 3; "
        r"pass a slice_pos from 0 to 2"
    )
    with pytest.raises(ArgumentError, match=text):
        make(10).slice(None, num_of_slices=3, slice_pos=slice_pos)


def test_less_than_one_slice_is_refused():
    with pytest.raises(ArgumentError, match="num_of_slices is 0; pass 1 or more"):
        make(10).slice(None, num_of_slices=0, slice_pos=0)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_of_slices": 2},
        {"slice_pos": 1},
        {"slice_start": 0},
        {"num_of_slices": 2, "slice_end": 4},
        {"num_of_slices": 2, "slice_pos": 0, "slice_start": 1},
        {"num_of_slices": 2, "slice_pos": 0, "slice_start": 1, "slice_end": 4},
    ],
    ids=lambda arguments: "+".join(arguments) or "nothing",
)
def test_a_slice_needs_exactly_one_of_the_two_pairs(arguments):
    values = {"num_of_slices": None, "slice_pos": None, "slice_start": None, "slice_end": None}
    given = ", ".join(f"{name} is {value}" for name, value in (values | arguments).items())
    with pytest.raises(ArgumentError, match=rf"\[DataIterator\.slice\] {given}; pass num_of_sl"):
        make(10).slice(None, **arguments)


def test_a_slice_smaller_than_a_batch_is_refused():
    with pytest.raises(ArgumentError, match="batch_size is 4 but the data has 3 samples"):
        make(10, 4).slice(None, slice_start=0, slice_end=3)


def test_more_slices_than_samples_are_refused_if_the_last_are_dropped():
    text = "num_of_slices is 4 but the data has 3 samples, none for each slice; pass 3 or less"
    with pytest.raises(ArgumentError, match=text):
        make(3).slice(None, num_of_slices=4, slice_pos=0, drop_last=True)


def test_a_slice_cached_in_files_is_not_supported_yet():
    text = r"\[DataIterator\.slice\] cache_dir='here' asks for a cache in files, .* not supported"
    with pytest.raises(ArgumentError, match=text):
        make(10).slice(None, num_of_slices=2, slice_pos=0, use_cache=True, cache_dir="here")


def test_a_slice_of_a_slice_is_a_part_of_it():
    source = SimpleDataSource(number, 12, shuffle=True)
    part = DataIterator(source, 1).slice(None, num_of_slices=2, slice_pos=1)
    part = part.slice(None, num_of_slices=3, slice_pos=1)
    rng = np.random.RandomState(313)
    expected = [rng.permutation(12)[8:10] for _ in range(2)]
    assert take(part, 4) == np.concatenate(expected).tolist()
