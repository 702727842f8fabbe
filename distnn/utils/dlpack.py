"""DLPack under the names of `nnabla.utils.dlpack`."""

from __future__ import annotations

from typing import Any

from ..interchange import from_dlpack
from ..ndarray import NdArray

__all__ = ["from_dlpack", "to_dlpack"]


def to_dlpack(array: NdArray) -> Any:
    """A DLPack capsule of the array's memory, for libraries that take capsules.

    >>> import distnn as nn
    >>> type(to_dlpack(nn.NdArray((2, 3)))).__name__
    'PyCapsule'
    """
    return array.__dlpack__()
