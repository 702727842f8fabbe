"""Gradients in half precision: half the bytes, sums in float32, rounding errors sent later.

MPI has no fast sum of float16, and one would round after every addition. So the sum is taken apart:
the part of rank r goes to r in half precision, r adds up in float32 in the order of the ranks and
rounds once, and all gather the rounded sums. All ranks decode the same words: equal bits.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np

from ..errors import ArgumentError
from ..ndarray import NdArray, Storage
from .exchange import Reducer, ranges, reduce_ranges
from .transport import Transport


class Residuals:
    """What was not sent of each array yet; kept as long as the array's storage lives."""

    def __init__(self) -> None:
        self._of: weakref.WeakKeyDictionary[Storage, np.ndarray] = weakref.WeakKeyDictionary()

    def of(self, item: NdArray) -> np.ndarray:
        """The residual of an array, flat; zeros at first."""
        storage = item._storage
        found = self._of.get(storage)
        if found is None or found.dtype != item.dtype:
            found = self._of[storage] = np.zeros(storage.size, item.dtype)
        return found[item._offset : item._offset + item.size]

    def scale(self, factor: float) -> None:
        for residual in list(self._of.values()):
            residual *= factor

    def __len__(self) -> int:
        return len(self._of)


class Compression(Reducer):
    """Base of compressions: keeps what was left out (error feedback) and the loss scale."""

    def __init__(self) -> None:
        self.residuals = Residuals()
        self._loss_scale = 1.0

    @property
    def loss_scale(self) -> float:
        """The factor that the loss, and so all gradients, were multiplied by.

        Set it when a loss scale changes, on all ranks between two steps: what was kept of old
        gradients is then brought to the new scale. Powers of two are exact.
        """
        return self._loss_scale

    @loss_scale.setter
    def loss_scale(self, value: float) -> None:
        if not 0 < value < float("inf"):
            raise ArgumentError(
                f"[{type(self).__name__}] loss_scale is {value}; pass a positive number"
            )
        self.residuals.scale(value / self._loss_scale)
        self._loss_scale = float(value)


class HalfCompression(Compression):
    """Sum float32 gradients over ranks in half precision, accumulated in float32.

    With v_r = g_r + e_r the ranks exchange h(v_r) and h(S), S = sum over r of h(v_r). The owner of
    a part takes its own v unrounded. Each rank keeps e_r = v_r - h(v_r), the owner of a part also
    S - h(S): over many steps the sum of the results differs from the exact one by what is kept at
    the end, one rounding, however many steps there were.

    Every message carries a power of two, taken from its largest finite value, that its values are
    multiplied by: gradients of any size neither overflow nor vanish. Infinities and NaN come
    through on all ranks; the residuals then stay as they were before that step, which a trainer
    with loss scaling skips.

    Arrays that are not float32 are summed as without compression; so are all on one rank. This
    pays where the link is slow: within a machine the conversions cost more than they save
    (scripts/bench_compression.py).

    Args:
        dtype: "float16" (11 bits of precision) or "bfloat16" (8 bits).
        error_feedback: keep and send what rounding left out. Costs one float32 per element.

    Mikami et al., arXiv:1811.05233 (half precision exchange); Karimireddy et al.,
    arXiv:1901.09847 (error feedback).

    >>> import distnn.communicators as C
    >>> comm = C.MultiProcessDataParallelCommunicator()
    >>> comm.init()
    >>> import numpy as np, distnn as nn
    >>> gradient = nn.NdArray.from_numpy_array(np.array([1, 2], np.float32))
    >>> comm.all_reduce(gradient, compression=C.HalfCompression())
    >>> gradient.data
    array([1., 2.], dtype=float32)
    """

    def __init__(self, dtype: str = "float16", error_feedback: bool = True) -> None:
        super().__init__()
        if dtype not in ("float16", "bfloat16"):
            raise ArgumentError(
                f"[HalfCompression] dtype is {dtype!r}; pass 'float16' or 'bfloat16'"
            )
        self.dtype = dtype
        self.error_feedback = error_feedback

    def describe(self) -> str:
        return f"HalfCompression({self.dtype}, error_feedback={self.error_feedback})"

    def reduce(self, items: Sequence[NdArray], transport: Transport, scale: float) -> None:
        chosen: list[NdArray] = []
        rest: list[NdArray] = []
        for item in items:
            halved = transport.size > 1 and item.dtype == np.float32 and item.size > 0
            (chosen if halved else rest).append(item)
        reduce_ranges(ranges(rest), transport, scale)
        if chosen:
            with np.errstate(all="ignore"):
                self._reduce(chosen, transport, scale)

    def _reduce(self, items: Sequence[NdArray], transport: Transport, scale: float) -> None:
        size, rank = transport.size, transport.rank
        memory = [item._view(item._storage.materialize()).reshape(-1) for item in items]
        length = sum(part.size for part in memory)
        values = np.zeros((size, -(-length // size)), np.float32)  # row r is the part of rank r
        np.concatenate(memory, out=values.reshape(-1)[:length])
        residuals = [self.residuals.of(item) for item in items] if self.error_feedback else []
        for part, residual in zip(_split(values, residuals), residuals, strict=True):
            part += residual

        sent = np.empty((size, 1 + values.shape[1]), np.uint16)
        for r in range(size):
            if r != rank:
                self._encode(values[r], sent[r])
        received = np.empty_like(sent)
        transport.all_to_all(list(sent), list(received))
        parts = [values[r] if r == rank else self._decode(received[r]) for r in range(size)]
        total = parts[0] + parts[1]
        for part in parts[2:]:
            total += part
        self._encode(total, sent[rank])
        transport.all_gather(sent[rank], received)
        result = np.stack([self._decode(message) for message in received])

        if residuals and np.isfinite(result).all():
            for r in range(size):
                values[r] = total - result[r] if r == rank else values[r] - self._decode(sent[r])
            for part, residual in zip(_split(values, residuals), residuals, strict=True):
                residual[...] = part
        if scale != 1:
            result *= np.float32(scale)
        for target, part in zip(memory, _split(result, memory), strict=True):
            target[...] = part

    def _encode(self, values: np.ndarray, message: np.ndarray) -> None:
        """Write the exponent of the power of two, then the values times it in half precision."""
        largest = max(float(values.max()), -float(values.min()))
        if not np.isfinite(largest):
            largest = float(np.abs(values[np.isfinite(values)]).max(initial=0))
        # The largest becomes 2^14 to 2^15, below float16's 65504; 2^126 and its inverse are normal.
        exponent = min(15 - int(np.frexp(largest)[1]), 126)
        message[:1].view(np.int16)[0] = exponent
        scaled = values * np.float32(2.0**exponent)
        if self.dtype == "float16":
            message[1:].view(np.float16)[...] = scaled
        else:
            message[1:] = to_bfloat16(scaled)

    def _decode(self, message: np.ndarray) -> np.ndarray:
        if self.dtype == "float16":
            values = message[1:].view(np.float16).astype(np.float32)
        else:
            values = from_bfloat16(message[1:])
        values *= np.float32(2.0 ** -int(message[:1].view(np.int16)[0]))
        return values


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 as bfloat16 in uint16: the upper half of the bits, rounded to nearest even."""
    bits = values.view(np.uint32)
    words = bits >> 16
    words &= 1
    words += 0x7FFF
    words += bits
    words >>= 16
    nan = np.isnan(values)
    if nan.any():  # rounding may carry a NaN's payload into the exponent, or drop it: an infinity
        words[nan] = bits[nan] >> 16 | 0x40
    return words.astype(np.uint16)


def from_bfloat16(words: np.ndarray) -> np.ndarray:
    """bfloat16 in uint16 as float32, exactly."""
    return (words.astype(np.uint32) << 16).view(np.float32)


def _split(values: np.ndarray, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Flat `values` cut into views of the sizes of `like`."""
    flat = values.reshape(-1)
    stops = np.cumsum([part.size for part in like]).tolist()
    return [flat[stop - part.size : stop] for part, stop in zip(like, stops, strict=True)]
