"""Gradients in half precision: half the bytes, sums in float32, rounding errors sent later.

MPI has no fast sum of float16, and one would round after every addition. So the sum is taken apart:
the part of rank r goes to r in half precision, r adds up in float32 in the order of the ranks and
rounds once, and all gather the rounded sums. All ranks decode the same words: equal bits.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..context import current_world
from ..errors import ArgumentError
from ..ndarray import NdArray
from ..parameter import get_parameters
from ..storage import Storage
from ..transfer import staged
from .exchange import Reducer, ranges, reduce_ranges
from .half_precision import PIECE, conversions
from .shards import Shard
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

    def by_name(self) -> dict[str, np.ndarray]:
        """Those of the gradients of this World's parameters, by name."""
        return by_name(self._of)

    def take(self, found: Mapping[str, np.ndarray]) -> None:
        """Take over what `by_name` gave."""
        self._of = from_names(found)

    def __len__(self) -> int:
        return len(self._of)


def by_name(of: Mapping[Storage, np.ndarray]) -> dict[str, np.ndarray]:
    """What is kept of gradients of this World's parameters, by name."""
    names = {gradient: name for name, gradient in _gradients().items()}
    return {names[storage]: array.copy() for storage, array in of.items() if storage in names}


def from_names(
    found: Mapping[str, np.ndarray],
) -> weakref.WeakKeyDictionary[Storage, np.ndarray]:
    """What `by_name` gave, for this World's gradients."""
    gradients = _gradients()
    return weakref.WeakKeyDictionary({gradients[name]: array for name, array in found.items()})


def _gradients() -> dict[str, Storage]:
    found = get_parameters(current_world().parameters)
    return {name: parameter.grad._storage for name, parameter in found.items()}


class Compression(Reducer):
    """Base of compressions: keeps what was left out (error feedback) and the loss scale.

    `distnn.checkpoint` saves what is kept of gradients of parameters.
    """

    def __init__(self) -> None:
        current_world().compressions[id(self)] = self
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

    def get_states(self) -> dict[str, Any]:
        """What this rank keeps from step to step, for `set_states`."""
        return {"loss_scale": self._loss_scale, "residuals": self.residuals.by_name()}

    def set_states(self, states: Mapping[str, Any]) -> None:
        """Take over what `get_states` gave, of a network with the same parameters."""
        self._loss_scale = states["loss_scale"]
        self.residuals.take(states["residuals"])


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
        self._to_half, self._from_half = conversions(dtype)

    def describe(self) -> str:
        return f"HalfCompression({self.dtype}, error_feedback={self.error_feedback})"

    def reduce(self, items: Sequence[NdArray], transport: Transport, scale: float) -> None:
        chosen: list[NdArray] = []
        rest: list[NdArray] = []
        for item in items:
            halved = transport.size > 1 and item.dtype == np.float32 and item.size > 0
            (chosen if halved else rest).append(item)
        reduce_ranges(ranges(rest), transport, scale)
        arrays = [item._view(item._storage.materialize()) for item in chosen]
        with staged(arrays) as memory, np.errstate(all="ignore"):
            gradients, residuals = Shard(), Shard()
            for item, array in zip(chosen, memory, strict=True):
                gradients.append(array)
                if self.error_feedback:
                    residuals.append(self.residuals.of(item))
            step = PIECE * transport.size
            for start in range(0, gradients.size, step):
                length = min(step, gradients.size - start)
                self._reduce_piece(gradients, residuals, start, length, transport, scale)

    def _reduce_piece(
        self,
        gradients: Shard,
        residuals: Shard,
        start: int,
        length: int,
        transport: Transport,
        scale: float,
    ) -> None:
        size, rank = transport.size, transport.rank
        values = np.zeros((size, -(-length // size)), np.float32)  # row r is the part of rank r
        flat = values.reshape(-1)[:length]
        flat[...] = gradients.read(start, start + length, flat.dtype)
        if self.error_feedback:
            flat += residuals.read(start, start + length, flat.dtype)

        sent = np.empty((size, 1 + values.shape[1]), np.uint16)
        for r in range(size):
            if r != rank:
                self._encode(values[r], sent[r])
        received = np.empty_like(sent)
        transport.all_to_all(list(sent), list(received))
        total = np.zeros_like(values[0])
        for r in range(size):
            total += values[r] if r == rank else self._decode(received[r])
        self._encode(total, sent[rank])
        transport.all_gather(sent[rank], received)

        result = np.stack([self._decode(message) for message in received])
        if self.error_feedback and np.isfinite(result).all():
            for r in range(size):
                if r != rank:
                    values[r] -= self._decode(sent[r])
            np.subtract(total, result[rank], out=values[rank])
            residuals.write(start, flat)
        if scale != 1:
            result *= np.float32(scale)
        gradients.write(start, result.reshape(-1)[:length])

    def _encode(self, values: np.ndarray, message: np.ndarray) -> None:
        """Write the exponent of the power of two, then the values times it in half precision."""
        largest = max(float(values.max()), -float(values.min()))
        if not np.isfinite(largest):
            largest = float(np.abs(values[np.isfinite(values)]).max(initial=0))
        # The largest becomes 2^14 to 2^15, below float16's 65504; 2^126 and its inverse are normal.
        exponent = min(15 - int(np.frexp(largest)[1]), 126)
        message[:1].view(np.int16)[0] = exponent
        message[1:] = self._to_half(values * np.float32(2.0**exponent))

    def _decode(self, message: np.ndarray) -> np.ndarray:
        values = self._from_half(message[1:])
        values *= np.float32(2.0 ** -int(message[:1].view(np.int16)[0]))
        return values
