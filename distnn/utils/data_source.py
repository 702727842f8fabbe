"""Data sources, under the name of NNabla's module; they live in distnn.data."""

from ..data import DataSource, DataSourceWithMemoryCache, SlicedDataSource

__all__ = ["DataSource", "DataSourceWithMemoryCache", "SlicedDataSource"]
