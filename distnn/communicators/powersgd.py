"""PowerSGD: gradients of matrices as products of two thin ones, which can be summed over ranks."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError
from ..ndarray import NdArray
from ..storage import Storage
from ..threads import single_threaded_blas
from ..transfer import staged
from .compression import Compression, by_name, from_names
from .exchange import ranges, reduce_ranges
from .transport import Transport

_DEFAULT_SEED = 313


class PowerSGD(Compression):
    """Sum gradients over ranks in their best directions only: one step of power iteration.

    A gradient of shape (n, ...) is a matrix (n, m). With M_r = g_r + e_r and Q (m, rank) that is
    kept from the step before, and orthogonal columns P of the sum over r of M_r Q:

        Q = sum over r of M_r^T P,  result = P Q^T,  e_r = M_r - P (M_r^T P)^T

    So (n + m) rank numbers travel instead of n m, and the result is exact for a sum of that rank.
    What is left out is kept in e_r and comes later. Arrays with one axis, those for which this
    would not save at least half, and dtypes other than float32 and float64 are summed in full; the
    small ones in one message with the first products.

    All ranks factor the same sums, so they end with equal bits if their processors and libraries
    of linear algebra are alike. A matrix whose sum is not finite becomes NaN on all ranks, and its
    e and Q stay as they were. On one rank nothing is compressed.

    Args:
        rank: columns of P and Q; 1 to 4 is usual.
        random_state: draws the first Q; in the same state on all ranks. Default RandomState(313).

    Vogels, Karimireddy, Jaggi, NeurIPS 2019, arXiv:1905.13727.

    >>> import numpy as np, distnn as nn, distnn.communicators as C
    >>> def work():
    ...     comm = C.MultiProcessDataParallelCommunicator()
    ...     comm.init()
    ...     gradient = nn.NdArray.from_numpy_array(np.outer(np.arange(8.), np.ones(8)))
    ...     comm.all_reduce(gradient, compression=C.PowerSGD(rank=1))
    ...     return gradient.data[:, 0].round(6)
    >>> C.run_threads(work, 2)[0]
    array([ 0.,  2.,  4.,  6.,  8., 10., 12., 14.])
    """

    def __init__(self, rank: int = 2, random_state: np.random.RandomState | None = None) -> None:
        super().__init__()
        if rank < 1:
            raise ArgumentError(f"[PowerSGD] rank is {rank}; pass 1 or more")
        self.rank = int(rank)
        self._random = random_state or np.random.RandomState(_DEFAULT_SEED)
        self._first = copy.deepcopy(self._random).bytes(4).hex()
        self._bases: weakref.WeakKeyDictionary[Storage, np.ndarray] = weakref.WeakKeyDictionary()

    def describe(self) -> str:
        return f"PowerSGD(rank={self.rank}, random_state {self._first})"

    def get_states(self) -> dict[str, Any]:
        random = self._random.get_state(legacy=False)
        return {**super().get_states(), "bases": by_name(self._bases), "random": random}

    def set_states(self, states: Mapping[str, Any]) -> None:
        super().set_states(states)
        self._bases = from_names(states["bases"])
        self._random.set_state(states["random"])

    def compresses(self, item: NdArray) -> bool:
        """Whether this array is a matrix that is worth it."""
        n = item.shape[0] if item.ndim > 1 else 0
        m = item.size // n if n else 0
        return item.dtype in (np.float32, np.float64) and 0 < 2 * (n + m) * self.rank <= n * m

    def reduce(self, items: Sequence[NdArray], transport: Transport, scale: float) -> None:
        matrices = [i for i in items if transport.size > 1 and self.compresses(i)]
        chosen = {id(item) for item in matrices}
        rest = ranges([item for item in items if id(item) not in chosen])
        arrays = [item._view(item._storage.materialize()) for item in matrices]
        residuals = [_matrix(self.residuals.of(i).reshape(i.shape)) for i in matrices]
        with staged(arrays) as hosts, np.errstate(all="ignore"):
            memory = [_matrix(array) for array in hosts]
            with single_threaded_blas:
                changes = [g + e for g, e in zip(memory, residuals, strict=True)]
                images = [m @ self._basis(i) for m, i in zip(changes, matrices, strict=True)]
            # Only the directions of the images matter, so `scale` may be for the rest.
            reduce_ranges([*(p.reshape(-1) for p in images), *rest], transport, scale)
            with single_threaded_blas:
                columns = [_orthogonal(p) for p in images]
                mine = [m.T @ p for m, p in zip(changes, columns, strict=True)]
            sums = [np.array(q, order="C") for q in mine]
            reduce_ranges([q.reshape(-1) for q in sums], transport, 1)
            with single_threaded_blas:
                for k, item in enumerate(matrices):
                    if not np.isfinite(sums[k]).all():
                        memory[k][...] = np.nan
                        continue
                    np.subtract(changes[k], columns[k] @ mine[k].T, out=residuals[k])
                    np.matmul(columns[k], sums[k].T * memory[k].dtype.type(scale), out=memory[k])
                    if sums[k].any():
                        self._bases[item._storage] = np.linalg.qr(sums[k])[0]

    def _basis(self, item: NdArray) -> np.ndarray:
        """Q of a gradient, with orthogonal columns so that its size says nothing; first random."""
        found = self._bases.get(item._storage)
        shape = (item.size // item.shape[0], self.rank)
        if found is None or found.shape != shape:
            found = np.linalg.qr(self._random.standard_normal(shape))[0].astype(item.dtype)
            self._bases[item._storage] = found
        return found


def _orthogonal(matrix: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span those of `matrix`; NaN where it is not finite."""
    if not np.isfinite(matrix).all():
        return np.full_like(matrix, np.nan)
    return np.linalg.qr(matrix)[0]


def _matrix(array: np.ndarray) -> np.ndarray:
    return array.reshape(len(array), -1)
