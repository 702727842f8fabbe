"""DataIterator: batches of a data source, one prepared ahead; epochs and their callbacks.

What a batch holds is decided in batches.py, when it is made in prefetch.py; here is what the user
sees of it: epoch, position and callbacks follow the batches handed out, not those made ahead.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import ArgumentError
from .batches import Batch, Batches
from .prefetch import Prefetcher
from .slicing import slice_range
from .source import DataSource, RandomGenerator
from .wrapped_source import SlicedDataSource, with_memory_cache

EpochCallback = Callable[[int], object]
EpochCallbacks = Iterable[EpochCallback] | None


class DataIterator:
    """Endless batches of a data source.

    Where batch_size does not divide the number of samples, the last batch of an epoch is filled up
    with the first samples of the next one, in its new order. In the `next()` that returns the last
    sample of epoch e, the callbacks `end(e)` and `begin(e + 1)` are called, in the caller's thread.

    The batches are the same with and without thread. The thread runs in a copy of the context in
    which the iterator was made (default context, parameters, ...), and ends when the iterator is
    closed or no longer used.

    Args:
        data_source: a DataSource.
        batch_size: samples per batch, from 1 to data_source.size.
        rng: kept for NNabla's scripts; the order is the data source's.
        use_thread: load the next batch in a thread while the present one is in use.
        epoch_begin_callbacks: functions of an epoch's number, called when it begins; not for
            epoch 0, which begins before there is an iterator.
        epoch_end_callbacks: functions of an epoch's number, called when it ends.
        stop_exhausted: end the iteration with the last full batch of the first epoch: `next` raises
            StopIteration from then on, no epoch ends and no callback is called.
    Raises: ArgumentError if batch_size is less than 1 or more than the number of samples.

    >>> from distnn.data import SimpleDataSource
    >>> with DataIterator(SimpleDataSource(lambda i: (i,), 5), 2) as iterator:
    ...     [(iterator.next()[0].tolist(), iterator.epoch) for _ in range(3)]
    [([0, 1], 0), ([2, 3], 0), ([4, 0], 1)]
    """

    def __init__(
        self,
        data_source: DataSource,
        batch_size: int,
        rng: RandomGenerator | None = None,
        use_thread: bool = True,
        epoch_begin_callbacks: EpochCallbacks = None,
        epoch_end_callbacks: EpochCallbacks = None,
        stop_exhausted: bool = False,
    ) -> None:
        self._data_source = data_source
        self._batches = Batches(data_source, batch_size, stop_exhausted)
        self._epoch_begin_callbacks = list(epoch_begin_callbacks or ())
        self._epoch_end_callbacks = list(epoch_end_callbacks or ())
        self._state = self._batches.get_state()
        self._epoch = 0
        self._position = 0
        self._closed = False
        self._prefetcher: Prefetcher[Batch | None] | None = None
        if use_thread:
            self._prefetcher = Prefetcher(self._batches.make, self._batches.cancel)
            # Called when the iterator is collected, closed, or alive when the program ends.
            self._stop_thread = weakref.finalize(self, self._prefetcher.stop)

    @property
    def epoch(self) -> int:
        """How many epochs have ended with the batches handed out."""
        return self._epoch

    @property
    def position(self) -> int:
        """How many samples of this epoch have been handed out."""
        return self._position

    @property
    def size(self) -> int:
        """Number of samples in an epoch."""
        return self._data_source.size

    @property
    def batch_size(self) -> int:
        """Number of samples in a batch."""
        return self._batches.batch_size

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the arrays of a batch."""
        return tuple(self._data_source.variables or ())

    def __iter__(self) -> DataIterator:
        return self

    def __next__(self) -> tuple[np.ndarray, ...]:
        return self.next()

    def next(self) -> tuple[np.ndarray, ...]:
        """The next batch: for each variable an array (batch_size, ...) of the source's dtype.

        Raises: StopIteration if the data are exhausted (with stop_exhausted); ArgumentError if the
            iterator is closed; ShapeError if the samples have different shapes; whatever loading a
            sample raises. After an error the next call goes on at the sample that failed.

        >>> from distnn.data import data_iterator_simple
        >>> with data_iterator_simple(lambda i: (i, i / 2), 100, batch_size=3) as iterator:
        ...     iterator.next()
        (array([0, 1, 2]), array([0. , 0.5, 1. ]))
        """
        self._check_open("next")
        batch = self._take()
        if batch is None:
            raise StopIteration
        self._position = batch.position
        try:
            if batch.epoch_ended:
                self._end_epoch()
        finally:
            # Only now: a checkpoint that a callback writes is of before this batch, since the
            # parameters have not been trained on it.
            self._state = batch.state
        return batch.arrays

    def _take(self) -> Batch | None:
        if self._prefetcher is None:
            return self._batches.make()
        batch = self._prefetcher.get()
        if batch is not None:
            self._prefetcher.request()
        return batch

    def _end_epoch(self) -> None:
        try:
            for callback in list(self._epoch_end_callbacks):
                callback(self._epoch)
        finally:
            self._epoch += 1
        for callback in list(self._epoch_begin_callbacks):
            callback(self._epoch)

    def register_epoch_begin_callback(self, callback: EpochCallback) -> None:
        """Call `callback(epoch)` from now on when an epoch begins."""
        self._epoch_begin_callbacks.append(callback)

    def register_epoch_end_callback(self, callback: EpochCallback) -> None:
        """Call `callback(epoch)` from now on when an epoch ends.

        >>> from distnn.data import data_iterator_simple
        >>> iterator = data_iterator_simple(lambda i: (i,), 6, batch_size=3, use_thread=False)
        >>> iterator.register_epoch_end_callback(lambda epoch: print("end of epoch", epoch))
        >>> _ = iterator.next(), iterator.next()
        end of epoch 0
        """
        self._epoch_end_callbacks.append(callback)

    def slice(
        self,
        rng: RandomGenerator | None = None,
        num_of_slices: int | None = None,
        slice_pos: int | None = None,
        slice_start: int | None = None,
        slice_end: int | None = None,
        cache_dir: str | None = None,
        use_cache: bool = False,
        drop_last: bool = False,
    ) -> DataIterator:
        """A new iterator over a part of the data, for one rank of several for example.

        It begins with epoch 0, has this one's batch_size and use_thread, and no callbacks.

        Args:
            rng: numpy generator of the memory cache's orders (use_cache).
            num_of_slices, slice_pos: the slice_pos-th of num_of_slices equally long parts. Where
                the number of samples is not divisible, parts overlap; this is logged.
            slice_start, slice_end: or these positions, the last one excluded.
            cache_dir: not supported.
            use_cache: keep the samples in memory; each slice then shuffles its own samples only.
            drop_last: with num_of_slices: leave samples out rather than let parts overlap.
        Raises: ArgumentError unless exactly one of the two pairs is given and in range, or if the
            part has fewer than batch_size samples.

        >>> from distnn.data import data_iterator_simple
        >>> iterator = data_iterator_simple(lambda i: (i,), 12, batch_size=3, use_thread=False)
        >>> iterator.slice(num_of_slices=3, slice_pos=1).next()[0]
        array([4, 5, 6])
        """
        self._check_open("slice")
        by_number = num_of_slices is not None and slice_pos is not None
        by_range = slice_start is not None and slice_end is not None
        given = sum(v is not None for v in (num_of_slices, slice_pos, slice_start, slice_end))
        if given != 2 or by_number == by_range:
            raise ArgumentError(
                f"[DataIterator.slice] num_of_slices is {num_of_slices}, slice_pos is {slice_pos}, "
                f"slice_start is {slice_start}, slice_end is {slice_end}; pass num_of_slices and "
                "slice_pos, or slice_start and slice_end"
            )
        if cache_dir is not None and use_cache:
            raise file_cache_error("DataIterator.slice", f"cache_dir={cache_dir!r}")
        if num_of_slices is not None and slice_pos is not None:
            slice_start, slice_end = slice_range(self.size, num_of_slices, slice_pos, drop_last)
        source = self._data_source
        shuffle = source.shuffle
        part: DataSource = SlicedDataSource(source, shuffle, None, slice_start, slice_end)
        if use_cache:
            part = with_memory_cache(part, shuffle, rng)
        return DataIterator(part, self.batch_size, use_thread=self._prefetcher is not None)

    def get_state(self) -> dict[str, Any]:
        """What `set_state` of an equal iterator needs to go on with the batch that comes next here.

        It holds numbers, texts, None, numpy arrays, and dicts of these. Of random numbers that are
        drawn while samples are loaded it knows those of numpy generators that are attributes of the
        data source (or passed as its `rng`); a memory cache starts empty, so random parts of its
        samples are drawn anew. In an epoch callback the batch that comes next is the one in the
        making, that the present `next()` will return.

        >>> from distnn.data import data_iterator_simple
        >>> def make():
        ...     return data_iterator_simple(lambda i: (i,), 10, batch_size=4, shuffle=True)
        >>> with make() as first, make() as second:
        ...     _ = first.next(), first.next()
        ...     second.set_state(first.get_state())
        ...     first.next()[0].tolist() == second.next()[0].tolist()
        True
        """
        return copy.deepcopy(self._state)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on as the iterator did from which `state` was taken by `get_state`.

        Raises: ArgumentError if the state is of another kind of data source; nothing has changed
            then.
        """
        self._check_open("set_state")
        self._batches.check_state(state)
        if self._prefetcher is not None:
            self._prefetcher.discard()
        self._batches.set_state(copy.deepcopy(dict(state)))
        self._state = self._batches.get_state()
        self._epoch = self._batches.epoch
        self._position = self._batches.position

    def close(self) -> None:
        """End the thread and close the data source; slices of this iterator go on."""
        if self._closed:
            return
        self._closed = True
        if self._prefetcher is not None:
            self._stop_thread()
        self._data_source.close()

    def __enter__(self) -> DataIterator:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check_open(self, method: str) -> None:
        if self._closed:
            raise ArgumentError(f"[DataIterator.{method}] the iterator is closed; make a new one")


def file_cache_error(function: str, argument: str) -> ArgumentError:
    """The error of those who ask for a cache in files."""
    return ArgumentError(
        f"[{function}] {argument} asks for a cache in files, which is not supported yet; use "
        "the cache in memory instead (with_memory_cache=True; in slice: use_cache=True)"
    )
