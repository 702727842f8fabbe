"""Data sources and iterators: samples, their order, and batches of them, prepared ahead.

`distnn.utils.data_iterator` and `distnn.utils.data_source` give the same names as NNabla's modules.
"""

from .iterator import DataIterator
from .make_iterator import data_iterator, data_iterator_concat_datasets, data_iterator_simple
from .ordered_source import ConcatDataSource, SimpleDataSource
from .source import DataSource
from .wrapped_source import DataSourceWithMemoryCache, SlicedDataSource

__all__ = [
    "ConcatDataSource",
    "DataIterator",
    "DataSource",
    "DataSourceWithMemoryCache",
    "SimpleDataSource",
    "SlicedDataSource",
    "data_iterator",
    "data_iterator_concat_datasets",
    "data_iterator_simple",
]
