"""DataSource, and the sources that distnn brings."""

import importlib

import numpy as np
import pytest

from distnn.data import (
    ConcatDataSource,
    DataSource,
    DataSourceWithMemoryCache,
    SimpleDataSource,
    SlicedDataSource,
    data_iterator,
    data_iterator_concat_datasets,
    data_iterator_simple,
    wrapped_source,
)
from distnn.errors import ArgumentError, DtypeError


class Counting:
    """A load function that counts how often each sample is loaded."""

    def __init__(self, n, start=0):
        self.calls = np.zeros(n, int)
        self.start = start

    def __call__(self, i):
        self.calls[i] += 1
        return i + self.start, np.float32(i)


def read(source, count):
    return [int(source.next()[0]) for _ in range(count)]


def take(iterator, count):
    return np.concatenate([iterator.next()[0] for _ in range(count)])


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (
            "data_iterator",
            "DataIterator data_iterator data_iterator_simple data_iterator_concat_datasets",
        ),
        ("data_source", "DataSource DataSourceWithMemoryCache SlicedDataSource"),
    ],
)
def test_nnablas_modules_give_the_names(module, names):
    found = importlib.import_module(f"distnn.utils.{module}")
    here = importlib.import_module("distnn.data")
    for name in names.split():
        assert getattr(found, name) is getattr(here, name)


# -- DataSource -------------------------------------------------------------------------------


def test_a_source_has_random_state_313_by_default():
    expected = np.random.RandomState(313).rand(3)
    np.testing.assert_array_equal(DataSource()._rng.rand(3), expected)


@pytest.mark.parametrize("rng", [5, "313", np.random])
def test_an_rng_that_is_no_generator_is_refused(rng):
    with pytest.raises(DtypeError, match=r"\[SimpleDataSource\] rng is .*; pass a numpy generator"):
        SimpleDataSource(lambda i: (i,), 3, rng=rng)


def test_a_source_must_implement_get_data():
    class Nothing(DataSource):
        pass

    with pytest.raises(NotImplementedError, match="Nothing must implement _get_data"):
        Nothing().next()


def test_next_moves_on_and_reset_goes_back():
    source = SimpleDataSource(lambda i: (i,), 5)
    assert [next(source)[0], source.next()[0], source.position] == [0, 1, 2]
    source.reset()
    assert [source.position, source.next()[0]] == [0, 0]


def test_a_source_tells_size_variables_and_shuffle():
    source = SimpleDataSource(lambda i: (i, i), 5, shuffle=True)
    assert (source.size, source.variables, source.shuffle) == (5, ("x0", "x1"), True)


def test_a_source_is_closed_by_with():
    with SimpleDataSource(lambda i: (i,), 5) as source:
        assert not source._closed
    assert source._closed


# -- SimpleDataSource -------------------------------------------------------------------------


def test_reset_keeps_the_order_and_apply_order_makes_the_next():
    rng = np.random.RandomState(313)
    first, second = rng.permutation(8), rng.permutation(8)
    source = SimpleDataSource(lambda i: (i,), 8, shuffle=True)
    np.testing.assert_array_equal(source.order, first)
    source.reset()
    assert read(source, 8) == first.tolist()
    source.reset()
    source.apply_order()
    assert read(source, 8) == second.tolist()
    np.testing.assert_array_equal(source.order, second)


def test_shuffle_may_be_switched_on_for_the_following_epochs():
    source = SimpleDataSource(lambda i: (i,), 8)
    source.shuffle = True
    assert read(source, 8) == list(range(8))
    source.reset()
    source.apply_order()
    assert read(source, 8) == np.random.RandomState(313).permutation(8).tolist()


def test_an_order_that_is_no_longer_kept_is_not_drawn_anew():
    source = SimpleDataSource(lambda i: (i,), 8, shuffle=True)
    for _ in range(20):
        source.apply_order()
    with pytest.raises(ArgumentError, match="the order of epoch 3 is wanted but those of epochs 6"):
        source._generate_order(3)


# -- ConcatDataSource -------------------------------------------------------------------------


def test_concatenated_sources_follow_each_other():
    parts = [SimpleDataSource(Counting(n, 100 * n), n) for n in (3, 1, 2)]
    source = ConcatDataSource(parts, shuffle=False)
    assert source.size == 6
    assert read(source, 6) == [300, 301, 302, 100, 200, 201]


def test_one_source_may_be_concatenated_twice():
    part = SimpleDataSource(lambda i: (i,), 2)
    assert read(ConcatDataSource([part, part], shuffle=False), 4) == [0, 1, 0, 1]


@pytest.mark.parametrize("cache", [False, True])
def test_concatenated_sources_are_shuffled_as_a_whole(cache):
    parts = [SimpleDataSource(Counting(n, start), n) for n, start in ((7, 0), (3, 7))]
    with data_iterator_concat_datasets(parts, 5, shuffle=True, with_memory_cache=cache) as iterator:
        np.testing.assert_array_equal(take(iterator, 2), np.random.RandomState(313).permutation(10))


def test_concatenating_is_not_shuffled_by_default():
    parts = [SimpleDataSource(Counting(n, start), n) for n, start in ((7, 0), (3, 7))]
    with data_iterator_concat_datasets(parts, 5) as iterator:
        np.testing.assert_array_equal(take(iterator, 4), np.tile(np.arange(10), 2))


def test_closing_a_concatenation_closes_its_parts():
    parts = [SimpleDataSource(lambda i: (i,), 2) for _ in range(2)]
    ConcatDataSource(parts).close()
    assert [part._closed for part in parts] == [True, True]


def test_an_empty_list_of_sources_is_refused():
    with pytest.raises(ArgumentError, match=r"\[ConcatDataSource\] data_source_list is empty"):
        data_iterator_concat_datasets([], 1)


def test_sources_with_other_numbers_of_arrays_are_refused():
    parts = [SimpleDataSource(lambda i: (i,), 2), SimpleDataSource(lambda i: (i, i), 2)]
    text = r"data_source_list\[1\] has the variables \['x0', 'x1'\] but .*\[0\] has \['x0'\]"
    with pytest.raises(ArgumentError, match=text):
        ConcatDataSource(parts)


def test_a_list_of_other_things_than_sources_is_refused():
    with pytest.raises(DtypeError, match=r"data_source_list\[1\] is of type int; pass a Data"):
        ConcatDataSource([SimpleDataSource(lambda i: (i,), 2), 3])


# -- DataSourceWithMemoryCache ----------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("use_thread", [False, True])
def test_the_cache_loads_each_sample_once(shuffle, use_thread):
    load = Counting(10)
    with data_iterator_simple(
        load, 10, 4, shuffle=shuffle, use_thread=use_thread, with_memory_cache=True
    ) as iterator:
        take(iterator, 10)
    load.calls[0] -= 1  # to learn the number of arrays
    assert load.calls.tolist() == [1] * 10


def test_the_cache_shuffles_the_first_epochs_order_anew_in_each_later_one():
    inner = np.random.RandomState(1).permutation(10)
    own = np.random.RandomState(2)
    expected = np.concatenate([inner, inner[own.permutation(10)], inner[own.permutation(10)]])
    source = SimpleDataSource(Counting(10), 10, shuffle=True, rng=np.random.RandomState(1))
    with data_iterator(source, 5, rng=np.random.RandomState(2)) as iterator:
        np.testing.assert_array_equal(take(iterator, 6), expected)


def test_the_cache_keeps_the_order_without_shuffle():
    with data_iterator_simple(Counting(10), 10, 4, with_memory_cache=True) as iterator:
        np.testing.assert_array_equal(take(iterator, 5), np.tile(np.arange(10), 2))


def test_the_cache_keeps_dtypes():
    with data_iterator_simple(Counting(10), 10, 4, with_memory_cache=True) as iterator:
        assert [array.dtype for array in iterator.next()] == [np.int64, np.float32]


def test_the_cache_copies_what_is_loaded():
    buffer = np.zeros(1)

    def load(i):
        buffer[:] = i
        return (buffer,)

    with data_iterator_simple(load, 4, 4, with_memory_cache=True) as iterator:
        np.testing.assert_array_equal(take(iterator, 2).ravel(), np.tile(np.arange(4), 2))


def test_data_that_do_not_fit_are_not_cached(monkeypatch, caplog):
    monkeypatch.setattr(wrapped_source, "MAX_CACHE_BYTES", 10 * 12)  # 8 + 4 bytes a sample
    caplog.set_level("INFO", "distnn")
    load = Counting(10)
    with data_iterator_simple(load, 10, 5, with_memory_cache=True) as iterator:
        np.testing.assert_array_equal(take(iterator, 4), np.tile(np.arange(10), 2))
    assert load.calls[9] >= 2
    assert "samples are loaded anew in every epoch" in caplog.text


def test_data_that_just_fit_are_cached(monkeypatch, caplog):
    monkeypatch.setattr(wrapped_source, "MAX_CACHE_BYTES", 10 * 12 + 1)
    caplog.set_level("INFO", "distnn")
    load = Counting(10)
    with data_iterator_simple(load, 10, 5, with_memory_cache=True) as iterator:
        take(iterator, 6)
    assert load.calls[9] == 1
    assert caplog.text == ""


def test_the_cache_holds_one_order_although_its_source_is_used_elsewhere():
    source = SimpleDataSource(lambda i: (i,), 8, shuffle=True)
    cache = DataSourceWithMemoryCache(source)
    found = read(cache, 3)
    source.apply_order()
    assert found + read(cache, 5) == np.random.RandomState(313).permutation(8).tolist()


def test_closing_the_cache_closes_the_source():
    source = SimpleDataSource(lambda i: (i,), 2)
    DataSourceWithMemoryCache(source).close()
    assert source._closed


# -- SlicedDataSource -------------------------------------------------------------------------


def test_a_slice_follows_the_orders_of_its_source():
    rng = np.random.RandomState(313)
    orders = [rng.permutation(10) for _ in range(2)]
    part = SlicedDataSource(
        SimpleDataSource(lambda i: (i,), 10, shuffle=True), slice_start=3, slice_end=7
    )
    assert part.size == 4
    assert read(part, 4) == orders[0][3:7].tolist()
    part.reset()
    part.apply_order()
    assert read(part, 4) == orders[1][3:7].tolist()
    np.testing.assert_array_equal(part.order, orders[1][3:7])


def test_a_slice_of_a_slice_follows_the_orders_too():
    rng = np.random.RandomState(313)
    orders = [rng.permutation(10) for _ in range(2)]
    source = SimpleDataSource(lambda i: (i,), 10, shuffle=True)
    part = SlicedDataSource(
        SlicedDataSource(source, slice_start=2, slice_end=9), slice_start=1, slice_end=4
    )
    assert read(part, 3) == orders[0][3:6].tolist()
    part.reset()
    part.apply_order()
    assert read(part, 3) == orders[1][3:6].tolist()


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (3, 3), (4, 2), (5, 11)])
def test_a_range_outside_the_data_is_refused(start, end):
    source = SimpleDataSource(lambda i: (i,), 10)
    text = rf"slice_start is {start} and slice_end is {end} but the data has 10 samples; pass 0 <="
    with pytest.raises(ArgumentError, match=text):
        SlicedDataSource(source, slice_start=start, slice_end=end)


def test_a_slice_needs_its_range():
    source = SimpleDataSource(lambda i: (i,), 10)
    with pytest.raises(ArgumentError, match="slice_start is 2 and slice_end is None; pass both"):
        SlicedDataSource(source, slice_start=2)
