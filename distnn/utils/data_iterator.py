"""Data iterators, under the name of NNabla's module; they live in distnn.data."""

from ..data import (
    ConcatDataSource,
    DataIterator,
    DataSourceWithMemoryCache,
    SimpleDataSource,
    SlicedDataSource,
    data_iterator,
    data_iterator_concat_datasets,
    data_iterator_simple,
)

__all__ = [
    "ConcatDataSource",
    "DataIterator",
    "DataSourceWithMemoryCache",
    "SimpleDataSource",
    "SlicedDataSource",
    "data_iterator",
    "data_iterator_concat_datasets",
    "data_iterator_simple",
]
