"""float32 to 16 bits and back by operations on the bits, as NumPy has no bfloat16; and sums.

NumPy's conversions of float16 are about half as fast. Rounding is to nearest, ties to even.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..dtypes import BFLOAT16
from .transport import Transport

PIECE = 1 << 17  # elements of a message: conversions stay in the cache, and it is long
_SMALLEST_NORMAL = 0x00800000  # bits of float32
_INFINITY = 0x7C00  # bits of float16


def sum_halves(array: np.ndarray, transport: Transport, scale: float) -> None:
    """array = scale times its sum over ranks, in place: flat, of float16 or bfloat16.

    Added in float32 in the order of the ranks and rounded once, part r by rank r. MPI has no
    bfloat16, and no fast sum of float16, which would overflow.
    """
    to_half, from_half = conversions(array.dtype.name)
    words = array.view(np.uint16)
    size = transport.size
    for start in range(0, words.size, PIECE * size):
        piece = words[start : start + PIECE * size]
        parts = np.zeros((size, -(-piece.size // size)), np.uint16)
        flat = parts.reshape(-1)[: piece.size]
        flat[...] = piece
        received = np.empty_like(parts)
        transport.all_to_all(list(parts), list(received))
        total = from_half(received[0])
        for other in received[1:]:
            total += from_half(other)
        if scale != 1:
            total *= np.float32(scale)
        transport.all_gather(to_half(total), parts)
        piece[...] = flat


Conversion = Callable[[np.ndarray], np.ndarray]


def conversions(name: str) -> tuple[Conversion, Conversion]:
    """To the dtype of this name, as words, and back."""
    if name == BFLOAT16:
        return to_bfloat16, from_bfloat16
    return to_float16, from_float16


def to_float16(values: np.ndarray) -> np.ndarray:
    """float32 as float16, in uint16."""
    # Times 2^-112 the exponents of normal float16 are those of float32; 13 bits are rounded off.
    bits = (values * np.float32(2.0**-112)).view(np.uint32)
    signs = bits >> 16
    signs &= 0x8000
    bits &= 0x7FFFFFFF
    words = _rounded(bits, 13)
    bits -= 1
    rare = bits < _SMALLEST_NORMAL - 1  # subnormal in float16; zero has become the largest number
    rare |= words >= _INFINITY
    words |= signs
    result = words.astype(np.uint16)
    if rare.any():
        result.view(np.float16)[rare] = values[rare]
    return result


def from_float16(words: np.ndarray) -> np.ndarray:
    """float16 in uint16 as float32, exactly."""
    bits = words.astype(np.uint32)
    signs = bits & 0x8000
    signs <<= 16
    bits &= 0x7FFF
    bits <<= 13
    if bits.max(initial=0) >= _INFINITY << 13:
        return words.view(np.float16).astype(np.float32)
    values = bits.view(np.float32)
    values *= np.float32(2.0**112)
    bits |= signs
    return values


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 as bfloat16, in uint16: the upper half of the bits, rounded."""
    bits = values.view(np.uint32)
    words = _rounded(bits, 16)
    nan = np.isnan(values)
    if nan.any():  # rounding may carry a NaN's payload into the exponent, or drop it: an infinity
        words[nan] = bits[nan] >> 16 | 0x40
    return words.astype(np.uint16)


def from_bfloat16(words: np.ndarray) -> np.ndarray:
    """bfloat16 in uint16 as float32, exactly."""
    bits = words.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def _rounded(bits: np.ndarray, dropped: int) -> np.ndarray:
    """`bits` without the lowest ones, to nearest, ties to even."""
    words = bits >> dropped
    words &= 1
    words += (1 << (dropped - 1)) - 1
    words += bits
    words >>= dropped
    return words
