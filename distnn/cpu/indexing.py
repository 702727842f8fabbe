"""Compiled sums by index: the gradient of embedding and gather."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..functions.indexing import checked_indices
from ..threads import parallel_for
from .bfloat16 import FLOAT32, bits, is_bfloat16, number, put
from .compiler import kernel
from .twin import CpuTwin

# Numbers of a row that one thread adds up at least, and elements.
_LEAST_COLUMNS = 64
_PART = 65_536


class ScatterAdd(CpuTwin):
    takes_bfloat16 = True

    def forward(self, xp: Any, x: Any, index: Any, *, out: Any = None) -> Any:
        axis, length = self.function.axis, self.function.length
        before, after = x.shape[:axis], x.shape[axis + index.ndim :]
        y = xp.empty((*before, length, *after), x.dtype) if out is None else out
        total = xp.empty(y.shape, FLOAT32) if is_bfloat16(y) else y
        total.fill(0)
        if index.size == 0 or y.size == 0:
            return y if total is y else put(total, y)
        places = checked_indices(self.name, xp, index, length).reshape(-1)
        columns = math.prod(after)
        rows = np.ascontiguousarray(bits(x)).reshape(-1, places.size, columns)
        sums = total.reshape(-1, length, columns)
        grain = max(_LEAST_COLUMNS, _PART // (len(rows) * places.size))
        # Each thread has columns of its own, so rows are added in the order in which they come.
        parallel_for(lambda i, j: _add_rows(rows, places, sums, i, j), columns, grain)
        return y if total is y else put(total, y)


@kernel
def _add_rows(x, index, y, start, stop):
    for a in range(x.shape[0]):
        for k in range(index.size):
            row = y[a, index[k], start:stop]
            part = x[a, k, start:stop]
            for b in range(part.size):
                row[b] += number(part[b])
