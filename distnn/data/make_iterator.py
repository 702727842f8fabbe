"""The functions that make a DataIterator: of a source, of a function, of several sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .iterator import DataIterator, EpochCallbacks, file_cache_error
from .ordered_source import ConcatDataSource, SimpleDataSource
from .source import DataSource, RandomGenerator, check_source
from .wrapped_source import with_memory_cache as _with_memory_cache


def data_iterator(
    data_source: DataSource,
    batch_size: int,
    rng: RandomGenerator | None = None,
    use_thread: bool = True,
    with_memory_cache: bool = True,
    with_file_cache: bool = False,
    cache_dir: str | None = None,
    epoch_begin_callbacks: EpochCallbacks = None,
    epoch_end_callbacks: EpochCallbacks = None,
    stop_exhausted: bool = False,
) -> DataIterator:
    """Batches of a data source, by default with its samples kept in memory.

    Args:
        data_source: a DataSource, your own for example.
        batch_size: samples per batch.
        rng: numpy generator of the memory cache's orders; default `RandomState(313)`.
        use_thread: load the next batch in a thread while the present one is in use.
        with_memory_cache: load each sample once, if all fit in 1 GiB; see
            DataSourceWithMemoryCache. Pass False if a sample is random, or in memory already.
        with_file_cache: not supported; cache_dir: not used.
        epoch_begin_callbacks, epoch_end_callbacks, stop_exhausted: as of DataIterator.
    Raises: as DataIterator; ArgumentError for with_file_cache.

    >>> source = SimpleDataSource(lambda i: (i, i * i), 100)
    >>> with data_iterator(source, batch_size=3) as iterator:
    ...     x, y = iterator.next()
    >>> y
    array([0, 1, 4])
    """
    if with_file_cache:
        raise file_cache_error("data_iterator", "with_file_cache=True")
    check_source("data_iterator", "data_source", data_source)
    if with_memory_cache:
        data_source = _with_memory_cache(data_source, data_source.shuffle, rng)
    return DataIterator(
        data_source,
        batch_size,
        rng=rng,
        use_thread=use_thread,
        epoch_begin_callbacks=epoch_begin_callbacks,
        epoch_end_callbacks=epoch_end_callbacks,
        stop_exhausted=stop_exhausted,
    )


def data_iterator_simple(
    load_func: Callable[[int], Sequence[Any]],
    num_examples: int,
    batch_size: int,
    shuffle: bool = False,
    rng: RandomGenerator | None = None,
    use_thread: bool = True,
    with_memory_cache: bool = False,
    with_file_cache: bool = False,
    cache_dir: str | None = None,
    epoch_begin_callbacks: EpochCallbacks = None,
    epoch_end_callbacks: EpochCallbacks = None,
    stop_exhausted: bool = False,
) -> DataIterator:
    """Batches of the samples that a function loads.

    Args:
        load_func: takes the number of a sample, returns a tuple of arrays or numbers. All samples
            of a batch must have the same number of arrays, of the same shapes.
        num_examples: number of samples.
        batch_size: samples per batch.
        shuffle: a new order in every epoch.
        rng: numpy generator of the orders; default `RandomState(313)`.
        use_thread, with_memory_cache, with_file_cache, cache_dir, epoch_begin_callbacks,
            epoch_end_callbacks, stop_exhausted: as of data_iterator.
    Raises: as SimpleDataSource and data_iterator.

    >>> import numpy as np
    >>> images, labels = np.zeros((50, 1, 28, 28)), np.arange(50)
    >>> def load(i):
    ...     return images[i], labels[i : i + 1]
    >>> with data_iterator_simple(load, 50, batch_size=8, shuffle=True) as iterator:
    ...     x, y = iterator.next()
    >>> x.shape, y.shape
    ((8, 1, 28, 28), (8, 1))
    """
    return data_iterator(
        SimpleDataSource(load_func, num_examples, shuffle=shuffle, rng=rng),
        batch_size,
        rng=rng,
        use_thread=use_thread,
        with_memory_cache=with_memory_cache,
        with_file_cache=with_file_cache,
        cache_dir=cache_dir,
        epoch_begin_callbacks=epoch_begin_callbacks,
        epoch_end_callbacks=epoch_end_callbacks,
        stop_exhausted=stop_exhausted,
    )


def data_iterator_concat_datasets(
    data_source_list: Sequence[DataSource],
    batch_size: int,
    shuffle: bool = False,
    rng: RandomGenerator | None = None,
    use_thread: bool = True,
    with_memory_cache: bool = True,
    with_file_cache: bool = False,
    cache_dir: str | None = None,
    epoch_begin_callbacks: EpochCallbacks = None,
    epoch_end_callbacks: EpochCallbacks = None,
    stop_exhausted: bool = False,
) -> DataIterator:
    """Batches of the samples of several data sources.

    Args:
        data_source_list: sources whose samples have the same number of arrays.
        shuffle: a new order, over all sources, in every epoch.
        batch_size, rng, use_thread, with_memory_cache, with_file_cache, cache_dir,
            epoch_begin_callbacks, epoch_end_callbacks, stop_exhausted: as of data_iterator.
    Raises: as ConcatDataSource and data_iterator.

    >>> parts = [SimpleDataSource(lambda i: (i,), 2), SimpleDataSource(lambda i: (i + 10,), 2)]
    >>> with data_iterator_concat_datasets(parts, batch_size=4) as iterator:
    ...     iterator.next()[0]
    array([ 0,  1, 10, 11])
    """
    return data_iterator(
        ConcatDataSource(data_source_list, shuffle=shuffle, rng=rng),
        batch_size,
        rng=rng,
        use_thread=use_thread,
        with_memory_cache=with_memory_cache,
        with_file_cache=with_file_cache,
        cache_dir=cache_dir,
        epoch_begin_callbacks=epoch_begin_callbacks,
        epoch_end_callbacks=epoch_end_callbacks,
        stop_exhausted=stop_exhausted,
    )
