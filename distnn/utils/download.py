"""`download` and `get_data_home`, under another of NNabla's names."""

from .data_source_loader import download, get_data_home

__all__ = ["download", "get_data_home"]
