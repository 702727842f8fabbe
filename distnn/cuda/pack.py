"""Pack: neighbouring elements that a thread loads or stores with one instruction of 16 bytes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .kernels import includes

_BYTES = 16

_TEXT = """
template <class X, int V>
struct alignas(sizeof(X) * V) Pack { X element[V]; };

template <int V, class X>
static __device__ __forceinline__ bool aligned(const X* pointer) {
  return (unsigned long long)pointer % sizeof(Pack<X, V>) == 0;
}

template <int V, class X>
static __device__ __forceinline__ Pack<X, V>& pack(X* pointer) {
  return *reinterpret_cast<Pack<X, V>*>(pointer);
}

template <int V, class X>
static __device__ __forceinline__ const Pack<X, V>& pack(const X* pointer) {
  return *reinterpret_cast<const Pack<X, V>*>(pointer);
}
"""


def header(dtypes: Iterable[np.dtype]) -> str:
    """What a source with packs of these dtypes begins with."""
    return includes({dtype.char for dtype in dtypes}) + _TEXT


def pack_length(dtypes: Iterable[np.dtype]) -> int:
    """Elements of a pack where arrays of these dtypes are worked on together."""
    return _BYTES // max(dtype.itemsize for dtype in dtypes)
