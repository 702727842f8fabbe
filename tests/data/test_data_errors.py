"""Errors: of arguments, of samples that do not fit, of the load function; what comes after them."""

from contextlib import closing

import numpy as np
import pytest

from distnn.data import (
    DataIterator,
    DataSource,
    SimpleDataSource,
    data_iterator,
    data_iterator_concat_datasets,
    data_iterator_simple,
)
from distnn.errors import ArgumentError, DtypeError, ShapeError

THREAD = pytest.mark.parametrize("use_thread", [False, True], ids=["inline", "thread"])


def number(i):
    return (i,)


# -- arguments and samples ------------------------------------------------------------------


def test_a_batch_larger_than_the_data_is_refused():
    text = (
        r"\[DataIterator\] batch_size is 300 but the data has 200 samples; "
        r"pass a batch_size of 200 or less"
    )
    with pytest.raises(ArgumentError, match=text):
        data_iterator_simple(number, 200, 300)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_of_less_than_one_sample_is_refused(batch_size):
    with pytest.raises(ArgumentError, match=rf"\[DataIterator\] batch_size is {batch_size}; pass"):
        data_iterator_simple(number, 10, batch_size)


@pytest.mark.parametrize("num_examples", [0, -1])
def test_less_than_one_sample_is_refused(num_examples):
    text = rf"\[SimpleDataSource\] num_examples is {num_examples}; pass the number of samples"
    with pytest.raises(ArgumentError, match=text):
        data_iterator_simple(number, num_examples, 1)


def test_a_load_func_that_is_no_function_is_refused():
    with pytest.raises(DtypeError, match=r"\[SimpleDataSource\] load_func is of type list; pass"):
        data_iterator_simple([1, 2], 2, 1)


@pytest.mark.parametrize(
    ("sample", "kind"),
    [
        (None, "None"),
        (3, "an object of type int"),
        (np.array(3), "an object of type ndarray"),
        ((), "an object of type tuple"),
    ],
)
def test_a_load_func_that_returns_no_tuple_of_arrays_is_refused(sample, kind):
    text = rf"\[SimpleDataSource\] load_func\(0\) returned {kind}; return a tuple of arrays"
    with pytest.raises(DtypeError, match=text):
        data_iterator_simple(lambda i: sample, 2, 1)


@THREAD
@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize(
    ("sample", "found"),
    [((1,), "1 arrays"), ((1, 2, 3), "3 arrays"), (None, "None")],
)
def test_a_sample_with_another_number_of_arrays_is_named(sample, found, cache, use_thread):
    def load(i):
        return sample if i == 2 else (i, i)

    with data_iterator_simple(
        load, 6, 4, use_thread=use_thread, with_memory_cache=cache
    ) as iterator:
        text = rf"\[DataIterator\] position 2 of epoch 0 \(sample 2\) is {found} but .* 2 variables"
        with pytest.raises(ArgumentError, match=text):
            iterator.next()


@THREAD
def test_a_sample_of_another_shape_is_named(use_thread):
    def load(i):
        return i, np.zeros((4, 3) if i == 7 else (3, 3))

    position = np.random.RandomState(313).permutation(10).tolist().index(7)
    with data_iterator_simple(load, 10, 10, shuffle=True, use_thread=use_thread) as iterator:
        text = (
            rf"\[DataIterator\] 'x1' of position {position} of epoch 0 \(sample 7\) has shape "
            r"\(4, 3\) but the samples before it in the batch have \(3, 3\); return"
        )
        with pytest.raises(ShapeError, match=text):
            iterator.next()


def test_samples_of_several_shapes_are_fine_one_by_one():
    with data_iterator_simple(lambda i: (np.zeros(i),), 4, 1) as iterator:
        assert [iterator.next()[0].shape for _ in range(4)] == [(1, 0), (1, 1), (1, 2), (1, 3)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: data_iterator(SimpleDataSource(number, 4), 2, with_file_cache=True),
        lambda: data_iterator_simple(number, 4, 2, with_file_cache=True),
        lambda: data_iterator_concat_datasets(
            [SimpleDataSource(number, 4)], 2, with_file_cache=True
        ),
    ],
    ids=["data_iterator", "simple", "concat"],
)
def test_a_file_cache_is_not_supported_yet(make):
    text = r"with_file_cache=True asks for a cache in files, .* not supported yet; .*memory"
    with pytest.raises(ArgumentError, match=text):
        make()


@pytest.mark.parametrize("make", [data_iterator, DataIterator])
def test_what_is_no_data_source_is_refused(make):
    with pytest.raises(DtypeError, match="data_source is of type function; pass a DataSource"):
        make(number, 2)


def test_a_source_without_samples_or_variables_is_refused():
    class Empty(DataSource):
        pass

    source = Empty()
    with pytest.raises(ArgumentError, match=r"data_source \(Empty\) has size 0; set self\._s"):
        DataIterator(source, 1)
    source._size = 3
    with pytest.raises(ArgumentError, match=r"\(Empty\) has the variables None; set self"):
        DataIterator(source, 1)


# -- errors of the load function --------------------------------------------------------------


class Failing:
    """Loads sample `bad` only at the second attempt."""

    def __init__(self, bad):
        self.bad = bad
        self.failures = 0

    def __call__(self, i):
        if i == self.bad and self.failures == 0:
            self.failures += 1
            raise OSError(f"cannot read sample {i}")
        return (i,)


@THREAD
@pytest.mark.parametrize("bad", [1, 5, 9])
def test_an_error_of_the_load_function_is_raised_by_next(bad, use_thread):
    with data_iterator_simple(Failing(bad), 10, 4, use_thread=use_thread) as iterator:
        for _ in range(bad // 4):
            iterator.next()
        with pytest.raises(OSError, match=f"cannot read sample {bad}") as caught:
            iterator.next()
    assert caught.traceback[-1].name == "__call__"


@THREAD
@pytest.mark.parametrize("bad", [1, 5, 9])
def test_after_an_error_no_sample_is_lost(bad, use_thread):
    batches = []
    with data_iterator_simple(Failing(bad), 10, 4, shuffle=True, use_thread=use_thread) as iterator:
        while len(batches) < 6:
            try:
                batches.append(iterator.next()[0])
            except OSError:
                batches.append(iterator.next()[0])
    rng = np.random.RandomState(313)
    expected = np.concatenate([rng.permutation(10) for _ in range(3)])[:24]
    np.testing.assert_array_equal(np.concatenate(batches), expected)
    assert iterator._data_source._load_func.failures == 1


@THREAD
def test_an_error_in_reset_is_raised_and_the_batch_comes_next(use_thread):
    class Source(DataSource):
        def __init__(self):
            super().__init__(shuffle=True)
            self._size, self._variables, self.resets = 4, ("x",), 0
            self.reset()

        def reset(self):
            self.resets += 1
            if self.resets == 3:
                raise OSError("cannot reset")
            self._indexes = self._rng.permutation(4)
            super().reset()

        def _get_data(self, position):
            return (self._indexes[position],)

    rng = np.random.RandomState(313)
    rng.permutation(4)  # of the reset in its __init__; the iterator resets it again
    expected = np.concatenate([rng.permutation(4), rng.permutation(4)])[:6].reshape(2, 3)
    with closing(DataIterator(Source(), 3, use_thread=use_thread)) as iterator:
        np.testing.assert_array_equal(iterator.next()[0], expected[0])
        with pytest.raises(OSError, match="cannot reset"):
            iterator.next()
        np.testing.assert_array_equal(iterator.next()[0], expected[1])
        assert iterator.epoch == 1
