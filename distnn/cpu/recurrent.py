"""Compiled recurrent layers of float32: all steps of some examples in one kernel.

Examples are shared out to threads, which need not meet after each step. The part of the weight for
the state is stored in blocks of 16 columns, once; states and what goes into the gates are in blocks
too where they are multiplied (gemm.py), and in rows where gates are made of them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ..function import Spec
from ..threads import parallel_for
from . import gemm
from .compiler import kernel
from .mathematics import sigmoid, tanh
from .matmul import packed
from .simd import LANES, load, store
from .twin import CpuTwin

# Examples that a thread takes through all steps: a fixed number, for the sake of the bits.
_EXAMPLES = 16

_contracted = partial(kernel, fastmath={"contract"})


class _Layer(CpuTwin):
    """What they share: which shapes they take, and how they call their kernels."""

    @classmethod
    def suits(cls, function: Any, *specs: Spec | None) -> bool:
        x, h, *_ = specs
        return x is not None and h is not None and x.dtype.char == "f" and not h.shape[1] % LANES

    def _project(self, xp: Any, x: Any, w: Any, out: Any) -> Any:
        """Multiply all steps with the weight's part for x; returns the part for the state."""
        wx, wh = self.function.split(xp, w, x.shape[2])
        steps, batch, depth = x.shape
        xp.matmul(x.reshape(steps * batch, depth), wx.T, out=out.reshape(steps * batch, -1))
        return wh

    def _run(self, kernel: Any, batch: int, *arguments: Any) -> None:
        reverse = self.function.reverse
        parallel_for(lambda i, j: kernel(*arguments, reverse, i, j), batch, _EXAMPLES)


def _flat_bias(b: Any, length: int, dtype: Any) -> np.ndarray:
    return np.zeros(length, dtype) if b is None else np.ascontiguousarray(b).reshape(-1)


def _contiguous(array: Any, dtype: Any) -> np.ndarray:
    """For None an array without elements."""
    return np.empty((0, 0, 0), dtype) if array is None else np.ascontiguousarray(array)


class Rnn(_Layer):
    """functions.rnn.Rnn"""

    def forward(self, xp: Any, x: Any, h: Any, w: Any, b: Any = None, *, out: Any = None) -> Any:
        y = xp.empty((*x.shape[:2], h.shape[1]), x.dtype) if out is None else out
        wh = self._project(xp, x, w, y)
        bias = _flat_bias(b, y.shape[2], x.dtype)
        first = np.ascontiguousarray(h)
        self._run(_rnn, x.shape[1], bias, first, packed(wh.T), y, self._squashed)
        return y

    def backward(
        self, xp: Any, need: Any, dy: Any, x: Any, h: Any, w: Any, y: Any, *, out: Any
    ) -> None:
        _, wh = self.function.split(xp, w, x.shape[2])
        dz = xp.empty(y.shape, y.dtype)
        dh = np.empty(h.shape, h.dtype)
        dy = np.ascontiguousarray(dy)
        self._run(_rnn_back, x.shape[1], dy, y, packed(wh), dz, dh, self._squashed)
        self.function.give(xp, need, out, dz, dh, x, h, w, y)

    @property
    def _squashed(self) -> bool:
        return self.function.nonlinearity == "tanh"


class Lstm(_Layer):
    """functions.lstm.Lstm"""

    def forward(
        self, xp: Any, x: Any, h: Any, c: Any, w: Any, b: Any = None, *, out: Any = None
    ) -> Any:
        if out is None:
            out = tuple(xp.empty(s.shape, s.dtype) for s in self.function.setup(x, h, c, w))
        y, cell, gates = out
        wh = self._project(xp, x, w, gates)
        bias = _flat_bias(b, gates.shape[2], x.dtype)
        first = (np.ascontiguousarray(h), np.ascontiguousarray(c))
        self._run(_lstm, x.shape[1], gates, bias, *first, packed(wh.T), y, cell)
        return out

    def backward(
        self, xp: Any, need: Any, dy: Any, dcell: Any, x: Any, h: Any, c: Any, w: Any, y: Any,
        cell: Any, gates: Any, *, out: Any,
    ) -> None:  # fmt: skip
        dy, dcell = _contiguous(dy, y.dtype), _contiguous(dcell, y.dtype)
        _, wh = self.function.split(xp, w, x.shape[2])
        dz = xp.empty(gates.shape, gates.dtype)
        dh, dc = np.empty(h.shape, h.dtype), np.empty(h.shape, h.dtype)
        known = (dy, dcell, gates, cell, np.ascontiguousarray(c), packed(wh))
        self._run(_lstm_back, x.shape[1], *known, dz, dh, dc)
        self.function.give(xp, need, out, dz, dh, dc, x, h, w, y)


class Gru(_Layer):
    """functions.gru.Gru"""

    def forward(self, xp: Any, x: Any, h: Any, w: Any, b: Any = None, *, out: Any = None) -> Any:
        if out is None:
            out = tuple(xp.empty(s.shape, s.dtype) for s in self.function.setup(x, h, w))
        y, gates, q = out
        wh = self._project(xp, x, w, gates)
        bias = _flat_bias(b, 4 * h.shape[1], x.dtype)
        first = np.ascontiguousarray(h)
        self._run(_gru, x.shape[1], gates, bias, first, packed(wh.T), y, q)
        return out

    def backward(
        self, xp: Any, need: Any, dy: Any, x: Any, h: Any, w: Any, y: Any, gates: Any, q: Any,
        *, out: Any,
    ) -> None:  # fmt: skip
        _, wh = self.function.split(xp, w, x.shape[2])
        dz, dzh = xp.empty(gates.shape, gates.dtype), xp.empty(gates.shape, gates.dtype)
        dh = np.empty(h.shape, h.dtype)
        known = (np.ascontiguousarray(dy), gates, q, y, np.ascontiguousarray(h), packed(wh))
        self._run(_gru_back, x.shape[1], *known, dz, dzh, dh)
        self.function.give(xp, need, out, dz, dzh, dh, x, h, w, y)


# -- kernels --------------------------------------------------------------------------------------
#
# Arrays in blocks are flat: block k, row i and lane l of (K, rows, 16) at (k rows + i) 16 + l, with
# as many rows as tiles of products have. `start` and `stop` are the first example and the one after
# the last.


@kernel
def _rows(count):
    """As many rows as the tiles of `count` examples have."""
    return -(-count // gemm.ROWS) * gemm.ROWS


@kernel
def _copy_in(source, first, count, blocks, i, rows):
    """Row i of an array in `count` blocks gets the numbers from `first` on of a flat one."""
    for k in range(count):
        store(blocks, (k * rows + i) * LANES, load(source, first + k * LANES))


@kernel
def _add_out(blocks, i, rows, target, first, count):
    """Numbers from `first` on of a flat array have row i of an array in `count` blocks added."""
    for k in range(count):
        at = first + k * LANES
        store(target, at, load(target, at) + load(blocks, (k * rows + i) * LANES))


@kernel
def _multiply(a, b, c, depth, columns, rows):
    """C = A B for arrays in blocks: A (depth, rows, 16), B (columns, 16 depth, 16)."""
    block = rows * LANES
    b_block = depth * LANES * LANES
    gemm.multiply(a, block, 0, b, b_block, 0, depth, c, block, 0, rows, columns, 0, 1)


@_contracted
def _rnn(bias, h, packed, y, squashed, reverse, start, stop):
    """On entry y holds the product with x."""
    steps, batch, hidden = y.shape
    n, rows = hidden // LANES, _rows(stop - start)
    state = np.zeros(n * rows * LANES, np.float32)
    z = np.empty(n * rows * LANES, np.float32)
    for i in range(stop - start):
        _copy_in(h, (start + i) * hidden, n, state, i, rows)
    for step in range(steps):
        t = steps - 1 - step if reverse else step
        _multiply(state, packed, z, n, n, rows)
        for i in range(stop - start):
            place = (t * batch + start + i) * hidden
            _add_out(z, i, rows, y, place, n)
            row = y[t, start + i]
            if squashed:
                for j in range(hidden):
                    row[j] = tanh(row[j] + bias[j])
            else:
                for j in range(hidden):
                    row[j] = max(row[j] + bias[j], np.float32(0))
            _copy_in(y, place, n, state, i, rows)


@_contracted
def _rnn_back(dy, y, packed, dz, dh_first, squashed, reverse, start, stop):
    steps, batch, hidden = dy.shape
    n, rows = hidden // LANES, _rows(stop - start)
    back = np.zeros(n * rows * LANES, np.float32)
    outer = np.zeros(n * rows * LANES, np.float32)
    for step in range(steps - 1, -1, -1):
        t = steps - 1 - step if reverse else step
        for i in range(stop - start):
            place = (t * batch + start + i) * hidden
            d, value = dz[t, start + i], y[t, start + i]
            d[:] = dy[t, start + i]
            _add_out(back, i, rows, dz, place, n)
            if squashed:
                for j in range(hidden):
                    d[j] *= np.float32(1) - value[j] * value[j]
            else:
                for j in range(hidden):
                    d[j] = d[j] if value[j] > 0 else np.float32(0)
            _copy_in(dz, place, n, outer, i, rows)
        _multiply(outer, packed, back, n, n, rows)
    for i in range(stop - start):
        dh_first[start + i] = 0
        _add_out(back, i, rows, dh_first, (start + i) * hidden, n)


@_contracted
def _lstm(gates, bias, h, c, packed, y, cell, reverse, start, stop):
    steps, batch, hidden = y.shape
    n, rows = hidden // LANES, _rows(stop - start)
    state = np.zeros(n * rows * LANES, np.float32)
    z = np.empty(4 * n * rows * LANES, np.float32)
    for i in range(stop - start):
        _copy_in(h, (start + i) * hidden, n, state, i, rows)
    for step in range(steps):
        t = steps - 1 - step if reverse else step
        _multiply(state, packed, z, n, 4 * n, rows)
        for i in range(stop - start):
            row = start + i
            place = (t * batch + row) * hidden
            _add_out(z, i, rows, gates, 4 * place, 4 * n)
            before = c[row] if step == 0 else cell[t + 1 if reverse else t - 1, row]
            _lstm_gates(gates[t, row], bias)
            _lstm_states(gates[t, row], before, cell[t, row], y[t, row])
            _copy_in(y, place, n, state, i, rows)


@_contracted
def _lstm_gates(z, bias):
    """z = sigmoid(z + bias) for i, f and o, and tanh for g."""
    n = z.size // 4
    for j in range(2 * n):
        z[j] = sigmoid(z[j] + bias[j])
    g, bias_g = z[2 * n : 3 * n], bias[2 * n : 3 * n]
    for j in range(n):
        g[j] = tanh(g[j] + bias_g[j])
    o, bias_o = z[3 * n :], bias[3 * n :]
    for j in range(n):
        o[j] = sigmoid(o[j] + bias_o[j])


@_contracted
def _lstm_states(gates, before, cell, y):
    n = cell.size
    i, f, g, o = gates[:n], gates[n : 2 * n], gates[2 * n : 3 * n], gates[3 * n :]
    for j in range(n):
        cell[j] = f[j] * before[j] + i[j] * g[j]
    for j in range(n):
        y[j] = o[j] * tanh(cell[j])


@_contracted
def _lstm_back(dy, dcell, gates, cell, c, packed, dz, dh_first, dc_first, reverse, start, stop):
    steps, batch, hidden = cell.shape
    n, rows = hidden // LANES, _rows(stop - start)
    zeros = np.zeros(hidden, np.float32)
    back = np.zeros(n * rows * LANES, np.float32)
    outer = np.zeros(4 * n * rows * LANES, np.float32)
    dh = np.empty(hidden, np.float32)
    dc = np.zeros((stop - start, hidden), np.float32)
    for step in range(steps - 1, -1, -1):
        t = steps - 1 - step if reverse else step
        for i in range(stop - start):
            row = start + i
            before = c[row] if step == 0 else cell[t + 1 if reverse else t - 1, row]
            dh[:] = dy[t, row] if dy.size else zeros
            _add_out(back, i, rows, dh, 0, n)
            if dcell.size:
                dc[i] += dcell[t, row]
            _lstm_row_back(gates[t, row], before, cell[t, row], dh, dc[i], dz[t, row])
            _copy_in(dz, (t * batch + row) * 4 * hidden, 4 * n, outer, i, rows)
        _multiply(outer, packed, back, 4 * n, n, rows)
    for i in range(stop - start):
        dh_first[start + i] = 0
        _add_out(back, i, rows, dh_first, (start + i) * hidden, n)
        dc_first[start + i] = dc[i]


@_contracted
def _lstm_row_back(gates, before, cell, dh, dc, dz):
    """dz of a row, and in dc that of the step before."""
    n = cell.size
    i, f, g, o = gates[:n], gates[n : 2 * n], gates[2 * n : 3 * n], gates[3 * n :]
    di, df, dg, do = dz[:n], dz[n : 2 * n], dz[2 * n : 3 * n], dz[3 * n :]
    one = np.float32(1)
    for j in range(n):
        u = tanh(cell[j])
        do[j] = dh[j] * u * o[j] * (one - o[j])
        dc[j] += dh[j] * o[j] * (one - u * u)
    for j in range(n):
        di[j] = dc[j] * g[j] * i[j] * (one - i[j])
        dg[j] = dc[j] * i[j] * (one - g[j] * g[j])
    for j in range(n):
        df[j] = dc[j] * before[j] * f[j] * (one - f[j])
        dc[j] *= f[j]


@_contracted
def _gru(gates, bias, h, packed, y, q, reverse, start, stop):
    steps, batch, hidden = y.shape
    n, rows = hidden // LANES, _rows(stop - start)
    state = np.zeros(n * rows * LANES, np.float32)
    z = np.empty(3 * n * rows * LANES, np.float32)
    u = np.empty(3 * hidden, np.float32)
    for i in range(stop - start):
        _copy_in(h, (start + i) * hidden, n, state, i, rows)
    for step in range(steps):
        t = steps - 1 - step if reverse else step
        _multiply(state, packed, z, n, 3 * n, rows)
        for i in range(stop - start):
            row = start + i
            u[:] = 0
            _add_out(z, i, rows, u, 0, 3 * n)
            before = h[row] if step == 0 else y[t + 1 if reverse else t - 1, row]
            _gru_row(gates[t, row], bias, u, before, q[t, row], y[t, row])
            _copy_in(y, (t * batch + row) * hidden, n, state, i, rows)


@_contracted
def _gru_row(gates, bias, u, before, q, y):
    n = y.size
    for j in range(2 * n):
        gates[j] = sigmoid(gates[j] + u[j] + bias[j])
    r, z, new = gates[:n], gates[n : 2 * n], gates[2 * n :]
    u_new, bias_new, bias_q = u[2 * n :], bias[2 * n : 3 * n], bias[3 * n :]
    for j in range(n):
        q[j] = u_new[j] + bias_q[j]
    for j in range(n):
        new[j] = tanh(new[j] + bias_new[j] + r[j] * q[j])
    for j in range(n):
        y[j] = new[j] + z[j] * (before[j] - new[j])


@_contracted
def _gru_back(dy, gates, q, y, h, packed, dz, dzh, dh_first, reverse, start, stop):
    steps, batch, hidden = dy.shape
    n, rows = hidden // LANES, _rows(stop - start)
    back = np.zeros(n * rows * LANES, np.float32)
    outer = np.zeros(3 * n * rows * LANES, np.float32)
    dh = np.zeros((stop - start, hidden), np.float32)
    for step in range(steps - 1, -1, -1):
        t = steps - 1 - step if reverse else step
        for i in range(stop - start):
            row = start + i
            before = h[row] if step == 0 else y[t + 1 if reverse else t - 1, row]
            dh[i] += dy[t, row]
            _add_out(back, i, rows, dh, i * hidden, n)
            _gru_row_back(gates[t, row], q[t, row], before, dh[i], dz[t, row], dzh[t, row])
            _copy_in(dzh, (t * batch + row) * 3 * hidden, 3 * n, outer, i, rows)
        _multiply(outer, packed, back, 3 * n, n, rows)
    for i in range(stop - start):
        _add_out(back, i, rows, dh, i * hidden, n)
        dh_first[start + i] = dh[i]


@_contracted
def _gru_row_back(gates, q, before, dh, dz, dzh):
    """dz and dzh of a row, and in dh what goes to the step before beside their product."""
    n = q.size
    r, z, new = gates[:n], gates[n : 2 * n], gates[2 * n :]
    dr, du, dn, dq = dz[:n], dz[n : 2 * n], dz[2 * n :], dzh[2 * n :]
    one = np.float32(1)
    for j in range(n):
        dn[j] = dh[j] * (one - z[j]) * (one - new[j] * new[j])
    for j in range(n):
        du[j] = dh[j] * (before[j] - new[j]) * z[j] * (one - z[j])
    for j in range(n):
        dr[j] = dn[j] * q[j] * r[j] * (one - r[j])
        dq[j] = dn[j] * r[j]
    dzh[: 2 * n] = dz[: 2 * n]
    for j in range(n):
        dh[j] *= z[j]
