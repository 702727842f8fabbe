"""get_state and set_state: an iterator that goes on bit for bit where another one was."""

import pickle

import numpy as np
import pytest

from distnn.data import (
    ConcatDataSource,
    DataIterator,
    DataSource,
    SimpleDataSource,
    data_iterator,
    data_iterator_concat_datasets,
    data_iterator_simple,
)
from distnn.errors import ArgumentError

THREAD = pytest.mark.parametrize("use_thread", [False, True], ids=["inline", "thread"])
N = 10


def number(i):
    return (i,)


class InReset(DataSource):
    """Its order and its noise come from a generator of its own, as in many of NNabla's examples."""

    def __init__(self):
        super().__init__(shuffle=True)
        self._size, self._variables = N, ("x", "noise")
        self.rng = np.random.RandomState(5)
        self.reset()

    def reset(self):
        self._indexes = self.rng.permutation(N)
        super().reset()

    def _get_data(self, position):
        return self._indexes[position], self.rng.randn(2)


def noisy(use_thread):
    """The generator of the orders also makes the samples' noise."""
    rng = np.random.default_rng(3)
    return data_iterator_simple(
        lambda i: (i, rng.normal()), N, 4, shuffle=True, rng=rng, use_thread=use_thread
    )


def concat(use_thread):
    parts = [SimpleDataSource(number, 7, shuffle=True), SimpleDataSource(number, 3)]
    return DataIterator(ConcatDataSource(parts), 4, use_thread=use_thread)


MAKE = {
    "sequence": lambda t: data_iterator_simple(number, N, 4, use_thread=t),
    "shuffled": lambda t: data_iterator_simple(number, N, 4, shuffle=True, use_thread=t),
    "whole epochs": lambda t: data_iterator_simple(number, N, 5, shuffle=True, use_thread=t),
    "Generator": lambda t: data_iterator_simple(
        number, N, 4, shuffle=True, rng=np.random.default_rng(1), use_thread=t
    ),
    "noise": noisy,
    "in reset": lambda t: DataIterator(InReset(), 4, use_thread=t),
    "cache": lambda t: data_iterator_simple(
        number, N, 4, shuffle=True, with_memory_cache=True, use_thread=t
    ),
    "cache, Generator": lambda t: data_iterator(
        SimpleDataSource(number, N, True), 4, rng=np.random.default_rng(2), use_thread=t
    ),
    "concat": concat,
    "concat, cache": lambda t: data_iterator_concat_datasets(
        [SimpleDataSource(number, 7), SimpleDataSource(number, 3)], 4, shuffle=True, use_thread=t
    ),
    "slice": lambda t: data_iterator_simple(number, 3 * N, 4, shuffle=True, use_thread=t).slice(
        None, num_of_slices=3, slice_pos=1
    ),
    "slice, in reset": lambda t: DataIterator(InReset(), 2, use_thread=t).slice(
        None, slice_start=2, slice_end=9
    ),
    "slice, cache": lambda t: data_iterator_simple(
        number, 3 * N, 4, shuffle=True, use_thread=t
    ).slice(np.random.RandomState(4), num_of_slices=3, slice_pos=1, use_cache=True),
}


def run(iterator, count):
    """What the user sees of `count` batches."""
    found = []
    for _ in range(count):
        arrays = [array.tolist() for array in iterator.next()]
        found.append((arrays, iterator.epoch, iterator.position))
    return found


@THREAD
@pytest.mark.parametrize("taken", [0, 1, 2, 3, 5, 13])
@pytest.mark.parametrize("kind", MAKE)
def test_a_new_iterator_goes_on_with_the_same_batches(kind, taken, use_thread):
    with MAKE[kind](use_thread) as original, MAKE[kind](not use_thread) as resumed:
        run(original, taken)
        state = original.get_state()
        resumed.set_state(state)
        assert (resumed.epoch, resumed.position) == (original.epoch, original.position)
        assert run(resumed, 9) == run(original, 9)


@THREAD
@pytest.mark.parametrize("kind", MAKE)
def test_an_iterator_in_use_goes_back(kind, use_thread):
    with MAKE[kind](use_thread) as iterator:
        run(iterator, 4)
        state = iterator.get_state()
        first = run(iterator, 9)
        iterator.set_state(state)
        assert run(iterator, 9) == first


@THREAD
def test_a_resumed_iterator_can_be_resumed_again(use_thread):
    expected = run(MAKE["in reset"](False), 20)
    iterator, found = MAKE["in reset"](use_thread), []
    for _ in range(10):
        found += run(iterator, 2)
        state = iterator.get_state()
        iterator.close()
        iterator = MAKE["in reset"](use_thread)
        iterator.set_state(state)
    iterator.close()
    assert found == expected


def test_a_state_after_the_first_epoch_differs_from_the_start():
    # so that the tests above can fail
    with MAKE["shuffled"](False) as iterator, MAKE["shuffled"](False) as fresh:
        run(iterator, 5)
        assert run(iterator, 5) != run(fresh, 5)


@THREAD
def test_get_state_changes_nothing(use_thread):
    with MAKE["noise"](use_thread) as watched, MAKE["noise"](use_thread) as other:
        found = []
        for _ in range(9):
            watched.get_state()
            found += run(watched, 1)
        assert found == run(other, 9)


def test_a_state_does_not_change_as_the_iterator_goes_on():
    with MAKE["noise"](True) as iterator:
        run(iterator, 2)
        state = iterator.get_state()
        before = pickle.dumps(state)
        run(iterator, 5)
        assert pickle.dumps(state) == before


def test_changing_a_state_changes_no_iterator():
    with MAKE["noise"](True) as original, MAKE["noise"](True) as resumed:
        run(original, 4)
        state = original.get_state()
        resumed.set_state(state)
        for name in ("source", "generators", "epoch_generators"):
            state[name].clear()
        again = original.get_state()
        assert again.keys() == state.keys()
        for name in ("generators", "epoch_generators"):
            assert again[name].keys() == resumed.get_state()[name].keys() == {"_rng"}
        assert run(resumed, 5) == run(original, 5)


def test_a_generator_that_sources_share_is_stored_once():
    rng = np.random.RandomState(0)
    source = SimpleDataSource(number, N, shuffle=True, rng=rng)
    with data_iterator(source, 4, rng=rng) as iterator:
        assert len(iterator.get_state()["generators"]) == 1


def test_a_state_can_be_stored():
    with MAKE["slice"](True) as original, MAKE["slice"](True) as resumed:
        run(original, 4)
        resumed.set_state(pickle.loads(pickle.dumps(original.get_state())))
        assert run(resumed, 5) == run(original, 5)


def leaves(state):
    if isinstance(state, dict):
        for value in state.values():
            yield from leaves(value)
    else:
        yield state


@pytest.mark.parametrize("kind", MAKE)
def test_a_state_holds_plain_values_only(kind):
    with MAKE[kind](False) as iterator:
        run(iterator, 3)
        kinds = {type(value) for value in leaves(iterator.get_state())}
    assert kinds <= {int, float, bool, str, type(None), np.ndarray}


def test_a_state_does_not_grow_with_the_data():
    with data_iterator_simple(number, 100_000, 4, shuffle=True) as iterator:
        run(iterator, 2)
        assert len(pickle.dumps(iterator.get_state())) < 20_000


@THREAD
def test_a_state_taken_in_a_callback_is_of_before_the_batch(use_thread):
    states = []
    with MAKE["shuffled"](use_thread) as original, MAKE["shuffled"](use_thread) as resumed:
        original.register_epoch_end_callback(lambda e: states.append(original.get_state()))
        batches = run(original, 8)
        resumed.set_state(states[0])  # at the end of epoch 0, in the next() of the third batch
        assert (resumed.epoch, resumed.position) == (0, 8)
        assert run(resumed, 6) == batches[2:]


@THREAD
def test_callbacks_after_set_state_have_the_right_epoch(use_thread):
    with MAKE["whole epochs"](use_thread) as original, MAKE["whole epochs"](use_thread) as resumed:
        run(original, 5)
        resumed.set_state(original.get_state())
        events = []
        resumed.register_epoch_end_callback(lambda e: events.append(("end", e)))
        resumed.register_epoch_begin_callback(lambda e: events.append(("begin", e)))
        run(resumed, 1)
    assert events == [("end", 2), ("begin", 3)]


@THREAD
def test_an_exhausted_iterator_can_be_set_back(use_thread):
    with data_iterator_simple(number, 4, 2, use_thread=use_thread, stop_exhausted=True) as iterator:
        state = iterator.get_state()
        assert len(list(iterator)) == 2
        iterator.set_state(state)
        assert len(list(iterator)) == 2


@THREAD
def test_set_state_after_an_error_begins_with_a_whole_batch(use_thread):
    bad = [5]

    def load(i):
        if i in bad:
            raise OSError("lost")
        return (i,)

    with data_iterator_simple(load, 8, 4, use_thread=use_thread) as iterator:
        start = iterator.get_state()
        iterator.next()
        with pytest.raises(OSError, match="lost"):
            iterator.next()
        bad.clear()
        iterator.set_state(start)
        assert run(iterator, 2) == [([[0, 1, 2, 3]], 0, 4), ([[4, 5, 6, 7]], 1, 0)]


def test_another_batch_size_goes_on_at_the_same_sample():
    with MAKE["shuffled"](True) as original:
        run(original, 4)  # epoch 1, position 6
        state = original.get_state()
    with data_iterator_simple(number, N, 2, shuffle=True) as resumed:
        resumed.set_state(state)
        rng = np.random.RandomState(313)
        orders = [rng.permutation(N) for _ in range(3)]
        found = np.concatenate([resumed.next()[0] for _ in range(7)])
    np.testing.assert_array_equal(found, [*orders[1][6:], *orders[2]])


# -- states that do not fit -------------------------------------------------------------------


def state_of(kind):
    with MAKE[kind](False) as iterator:
        run(iterator, 3)
        return iterator.get_state()


@pytest.mark.parametrize(
    ("kind", "other", "text"),
    [
        ("shuffled", lambda: data_iterator_simple(number, 20, 4, shuffle=True), "size 10 but here"),
        ("shuffled", lambda: data_iterator_simple(number, N, 4), "shuffle True but here it is Fa"),
        ("in reset", lambda: MAKE["shuffled"](True), r"generators \['_rng', 'rng'\] but the data"),
        ("Generator", lambda: MAKE["shuffled"](True), r"'_rng' is of PCG64 but .* has MT19937"),
    ],
)
def test_a_state_of_another_kind_of_data_is_refused(kind, other, text):
    with other() as iterator, pytest.raises(ArgumentError, match=text) as caught:
        iterator.set_state(state_of(kind))
    assert str(caught.value).startswith("[DataIterator.set_state] state")


def test_what_is_no_state_is_refused():
    with MAKE["shuffled"](True) as iterator:
        text = r"\[DataIterator\.set_state\] state lacks \['epoch', 'epoch_generators', .*get_state"
        with pytest.raises(ArgumentError, match=text):
            iterator.set_state({"size": N, "shuffle": True})


@THREAD
def test_a_state_that_is_refused_changes_nothing(use_thread):
    with MAKE["shuffled"](use_thread) as iterator, MAKE["shuffled"](use_thread) as other:
        run(iterator, 4)
        run(other, 4)
        with pytest.raises(ArgumentError):
            iterator.set_state(state_of("in reset"))
        assert run(iterator, 5) == run(other, 5)
