"""CUDA source of the two kernels between images and patches, for any number of spatial axes.

Images (N, *S, C), patches (N, *O, group, *K, C / group). One thread serves one channel of a patch,
or of a pixel: neighbours in a warp are neighbouring channels, in memory as well.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from .kernels import FLOATS, TYPES, scalar_types

# n: lengths of the image, o: of the result, k: of the kernel; pad, stride and dilation.
_LENGTHS = ("n", "o", "k", "pad", "stride", "dilation")

_WORDS = {2: "unsigned short", 4: "unsigned int", 8: "unsigned long long"}  # by size

_KERNEL = """{types}
extern "C" __global__ void {name}(const T* source, T* target, {parameters}) {{
  typedef {index} Index;
  typedef unsigned {index} Count;
  {constants}
  const Index taps = {taps};
  for (Count i = blockIdx.x * (Count)blockDim.x + threadIdx.x; i < (Count)(rows * channels);
       i += gridDim.x * (Count)blockDim.x) {{
    const Index c = i % channels, row = i / channels;
    const Index column = c / group_channels * taps * group_channels + c % group_channels;
    Index image = row;
    {places}
    {body}
  }}
}}
"""


@functools.cache
def source(name: str, ndim: int, dtype: np.dtype, index: np.dtype) -> str:
    """The source of the kernel "gather_patches" or "add_patches"; `index` counts elements."""
    axes = range(ndim)
    names = ["rows", "channels", "group_channels", *(f"{n}{a}" for n in _LENGTHS for a in axes)]
    gather = name == "gather_patches"
    # Patches lie at the results' places q, pixels at y.
    place, length = ("q", "o") if gather else ("y", "n")
    places = [f"const Index {place}{a} = image % {length}{a}; image /= {length}{a};" for a in axes]
    return _KERNEL.format(
        # Gathering moves elements: only their size matters.
        types=f"typedef {_WORDS[dtype.itemsize]} T;" if gather else scalar_types(dtype.char),
        index=TYPES[index.char],
        name=name,
        parameters=", ".join(f"long long all_{n}" for n in names),
        constants="\n  ".join(f"const Index {n} = all_{n};" for n in names),
        taps=" * ".join(f"k{a}" for a in axes),
        places="\n    ".join(reversed(places)),
        body=_gather(ndim) if gather else _add(ndim),
    )


def _gather(ndim: int) -> str:
    axes = range(ndim)
    loops = [
        f"for (Index a{a} = 0; a{a} < k{a}; ++a{a}) {{ "
        f"const Index y{a} = q{a} * stride{a} - pad{a} + a{a} * dilation{a}; "
        f"const bool inside{a} = {f'inside{a - 1} && ' if a else ''}y{a} >= 0 && y{a} < n{a};"
        for a in axes
    ]
    pixel = _offset("image", "n", "y", ndim)
    return "\n    ".join(
        [
            "Index at = row * channels * taps + column;",
            *loops,
            f"target[at] = inside{ndim - 1} ? source[({pixel}) * channels + c] : 0;",
            "at += group_channels;",
            "}" * ndim,
        ]
    )


def _add(ndim: int) -> str:
    axes = range(ndim)
    loops = [
        f"for (Index a{a} = 0; a{a} < k{a}; ++a{a}) {{ "
        f"const Index r{a} = y{a} + pad{a} - a{a} * dilation{a}, q{a} = r{a} / stride{a}; "
        f"if (r{a} < 0 || q{a} * stride{a} != r{a} || q{a} >= o{a}) continue;"
        for a in axes
    ]
    result, tap = _offset("image", "o", "q", ndim), _offset("0", "k", "a", ndim)
    value = f"source[({result}) * channels * taps + column + ({tap}) * group_channels]"
    return "\n    ".join(
        [
            "Real sum = 0;",
            *loops,
            f"sum += (Real){value};",
            "}" * ndim,
            "target[i] = (T)sum;",
        ]
    )


def _offset(first: str, length: str, place: str, ndim: int) -> str:
    """((first * n0 + y0) * n1 + y1) ..."""
    text = first
    for a in range(ndim):
        text = f"({text} * {length}{a} + {place}{a})"
    return text


def sources() -> Iterator[tuple[str, str]]:
    """(name, CUDA source) of every kernel that is made for one to three spatial axes."""
    for name in ("gather_patches", "add_patches"):
        for ndim in (1, 2, 3):
            for char in FLOATS:
                for index in (np.int32, np.int64):
                    yield name, source(name, ndim, FLOATS[char], np.dtype(index))
