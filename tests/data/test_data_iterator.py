"""Batches, epochs, callbacks and the end of DataIterator, with and without prefetch thread."""

import threading

import numpy as np
import pytest

from distnn.data import DataIterator, DataSource, data_iterator_simple
from distnn.errors import ArgumentError

THREAD = pytest.mark.parametrize("use_thread", [False, True], ids=["inline", "thread"])


def number(i):
    return (i,)


def stream(n, epochs, shuffle, rng=None):
    """Numbers of the samples, one epoch after the other."""
    rng = rng or np.random.RandomState(313)
    return np.concatenate([rng.permutation(n) if shuffle else np.arange(n) for _ in range(epochs)])


def take(iterator, count):
    return np.array([iterator.next()[0] for _ in range(count)])


class ShuffledInReset(DataSource):
    """As in NNabla's examples: the order is made in reset(), by a generator named self.rng."""

    def __init__(self, n):
        super().__init__(shuffle=True)
        self._size = n
        self._variables = ("x",)
        self.rng = np.random.RandomState(7)
        self.closed = 0
        self.reset()

    def reset(self):
        self._indexes = self.rng.permutation(self._size)
        super().reset()

    def _get_data(self, position):
        return (self._indexes[position],)

    def close(self):
        self.closed += 1
        super().close()


# -- batches ----------------------------------------------------------------------------------


@THREAD
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("n", "b"), [(10, 4), (10, 5), (10, 10), (7, 1), (9, 8)])
def test_batches_run_on_across_epochs_in_the_new_order(n, b, shuffle, use_thread):
    count = 4 * n // b
    expected = stream(n, 6, shuffle)[: count * b].reshape(count, b)
    with data_iterator_simple(number, n, b, shuffle=shuffle, use_thread=use_thread) as iterator:
        np.testing.assert_array_equal(take(iterator, count), expected)


@THREAD
def test_an_epoch_holds_every_sample_once_also_where_a_batch_spans_two(use_thread):
    with data_iterator_simple(number, 10, 4, shuffle=True, use_thread=use_thread) as iterator:
        samples = take(iterator, 10).reshape(4, 10)
    np.testing.assert_array_equal(np.sort(samples), np.tile(np.arange(10), (4, 1)))


def test_the_default_order_is_that_of_random_state_313():
    # RandomState(313).permutation(10), as NNabla 1.39 gives it
    with data_iterator_simple(number, 10, 10, shuffle=True) as iterator:
        assert iterator.next()[0].tolist() == [5, 3, 2, 4, 0, 6, 1, 9, 7, 8]


@pytest.mark.parametrize("make", [np.random.RandomState, np.random.default_rng])
def test_rng_decides_the_order(make):
    expected = stream(10, 2, True, make(5)).reshape(2, 10)
    with data_iterator_simple(number, 10, 10, shuffle=True, rng=make(5)) as iterator:
        np.testing.assert_array_equal(take(iterator, 2), expected)


@THREAD
def test_a_source_that_shuffles_in_reset_gets_a_new_order_each_epoch(use_thread):
    rng = np.random.RandomState(7)
    rng.permutation(6)  # of the reset in its __init__; the iterator resets it again
    expected = stream(6, 3, True, rng)[:16].reshape(4, 4)
    with DataIterator(ShuffledInReset(6), 4, use_thread=use_thread) as iterator:
        np.testing.assert_array_equal(take(iterator, 4), expected)


@pytest.mark.parametrize(
    ("value", "dtype", "shape"),
    [
        (np.float32(1), np.float32, (3,)),
        (np.uint8([1, 2]), np.uint8, (3, 2)),
        (np.zeros((2, 1), np.float64), np.float64, (3, 2, 1)),
        (5, np.int64, (3,)),
        (0.5, np.float64, (3,)),
        ([1.0, 2.0], np.float64, (3, 2)),
        (True, np.bool_, (3,)),
    ],
)
def test_arrays_keep_the_dtype_of_the_samples(value, dtype, shape):
    with data_iterator_simple(lambda i: (value,), 6, 3) as iterator:
        batch = iterator.next()
    assert type(batch) is tuple
    assert (batch[0].dtype, batch[0].shape) == (dtype, shape)


def test_samples_of_several_dtypes_are_promoted_as_numpy_does():
    values = [1, 2.5, np.float32(3)]
    with data_iterator_simple(lambda i: (values[i],), 3, 3) as iterator:
        (x,) = iterator.next()
    np.testing.assert_array_equal(x, np.array([1, 2.5, 3]))


def test_a_load_function_may_reuse_its_buffer():
    buffer = np.zeros(2)

    def load(i):
        buffer[:] = i
        return (buffer,)

    with data_iterator_simple(load, 3, 3) as iterator:
        np.testing.assert_array_equal(iterator.next()[0], [[0, 0], [1, 1], [2, 2]])


def test_load_func_is_called_with_a_python_int():
    kinds = set()
    with data_iterator_simple(lambda i: (kinds.add(type(i)), i)[1:], 4, 2, shuffle=True) as it:
        it.next()
    assert kinds == {int}


def test_rows_of_an_array_are_taken_as_arrays():
    with data_iterator_simple(lambda i: np.full((2, 3), i), 4, 2) as iterator:
        x, y = iterator.next()
    np.testing.assert_array_equal(x, [[0, 0, 0], [1, 1, 1]])
    np.testing.assert_array_equal(y, x)


@THREAD
def test_the_iterator_is_an_iterator(use_thread):
    with data_iterator_simple(number, 4, 2, use_thread=use_thread) as iterator:
        assert iter(iterator) is iterator
        found = [x.tolist() for (x,), _ in zip(iterator, range(3), strict=False)]
    assert found == [[0, 1], [2, 3], [0, 1]]


def test_properties_tell_the_size_the_batch_size_and_the_variables():
    with data_iterator_simple(lambda i: (i, i), 10, 4) as iterator:
        assert (iterator.size, iterator.batch_size) == (10, 4)
        assert iterator.variables == ("x0", "x1")


@THREAD
def test_epoch_and_position_follow_the_batches_handed_out(use_thread):
    with data_iterator_simple(number, 10, 4, use_thread=use_thread) as iterator:
        found = [(iterator.epoch, iterator.position)]
        for _ in range(5):
            iterator.next()
            found.append((iterator.epoch, iterator.position))
    assert found == [(0, 0), (0, 4), (0, 8), (1, 2), (1, 6), (2, 0)]


# -- callbacks --------------------------------------------------------------------------------


@THREAD
@pytest.mark.parametrize(("n", "b"), [(10, 4), (10, 5), (3, 3)])
def test_callbacks_fire_in_the_next_that_returns_the_last_sample(n, b, use_thread):
    events, expected = [], []
    with data_iterator_simple(
        number,
        n,
        b,
        use_thread=use_thread,
        epoch_begin_callbacks=[lambda e: events.append(("begin", e, iterator.epoch))],
        epoch_end_callbacks=[lambda e: events.append(("end", e, iterator.epoch))],
    ) as iterator:
        for k in range(8):
            iterator.next()
            events.append(k)
            epoch = k * b // n
            if (k + 1) * b // n > epoch:
                expected += [("end", epoch, epoch), ("begin", epoch + 1, epoch + 1)]
            expected.append(k)
    assert events == expected


@THREAD
def test_registered_callbacks_fire_after_those_passed(use_thread):
    events = []
    with data_iterator_simple(
        number, 2, 2, use_thread=use_thread, epoch_end_callbacks=[lambda e: events.append("passed")]
    ) as iterator:
        iterator.register_epoch_end_callback(lambda e: events.append("registered"))
        iterator.register_epoch_begin_callback(lambda e: events.append("begin"))
        iterator.next()
    assert events == ["passed", "registered", "begin"]


def test_callbacks_run_in_the_thread_that_calls_next():
    threads = []
    with data_iterator_simple(number, 2, 2) as iterator:
        iterator.register_epoch_end_callback(lambda e: threads.append(threading.current_thread()))
        iterator.next()
    assert threads == [threading.current_thread()]


@THREAD
def test_an_error_in_a_callback_is_raised_and_the_epoch_has_ended(use_thread):
    def stop(epoch):
        raise KeyError("stop")

    with data_iterator_simple(
        number, 4, 2, use_thread=use_thread, epoch_end_callbacks=[stop]
    ) as iterator:
        iterator.next()
        with pytest.raises(KeyError, match="stop"):
            iterator.next()
        assert iterator.epoch == 1
        assert iterator.next()[0].tolist() == [0, 1]


def test_lists_of_callbacks_are_not_shared_between_iterators():
    callbacks, events = [], []
    with data_iterator_simple(number, 2, 2, epoch_end_callbacks=callbacks) as iterator:
        iterator.register_epoch_end_callback(events.append)
        iterator.next()
    assert (callbacks, events) == ([], [0])


# -- stop_exhausted ---------------------------------------------------------------------------


@THREAD
@pytest.mark.parametrize(("n", "b", "count"), [(10, 4, 2), (10, 5, 2), (10, 10, 1), (5, 1, 5)])
def test_stop_exhausted_ends_with_the_last_full_batch(n, b, count, use_thread):
    events = []
    with data_iterator_simple(
        number,
        n,
        b,
        use_thread=use_thread,
        stop_exhausted=True,
        epoch_end_callbacks=[events.append],
    ) as iterator:
        batches = [x.tolist() for (x,) in iterator]
        assert batches == np.arange(count * b).reshape(count, b).tolist()
        assert (iterator.epoch, events) == (0, [])


@THREAD
def test_next_raises_stop_iteration_again_after_the_end(use_thread):
    with data_iterator_simple(number, 2, 2, use_thread=use_thread, stop_exhausted=True) as iterator:
        iterator.next()
        for _ in range(2):
            with pytest.raises(StopIteration):
                iterator.next()


# -- closing ----------------------------------------------------------------------------------


@THREAD
@pytest.mark.parametrize("method", ["next", "slice", "set_state"])
def test_a_closed_iterator_refuses_to_go_on(method, use_thread):
    iterator = data_iterator_simple(number, 4, 2, use_thread=use_thread)
    state = iterator.get_state()
    iterator.next()
    iterator.close()
    arguments = {
        "next": {},
        "slice": {"slice_start": 0, "slice_end": 2},
        "set_state": {"state": state},
    }
    with pytest.raises(ArgumentError, match=rf"\[DataIterator\.{method}\] the iterator is closed"):
        getattr(iterator, method)(**arguments[method])


@THREAD
def test_closing_closes_the_source_once(use_thread):
    source = ShuffledInReset(4)
    iterator = DataIterator(source, 2, use_thread=use_thread)
    iterator.close()
    iterator.close()
    assert source.closed == 1


@THREAD
def test_the_with_statement_closes(use_thread):
    source = ShuffledInReset(4)
    with DataIterator(source, 2, use_thread=use_thread) as iterator:
        iterator.next()
    assert source.closed == 1
