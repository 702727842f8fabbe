"""Products of bfloat16 matrices, summed in float32, by the tile registers (AMX) of newer Xeons.

A tile holds 16 rows of 64 bytes. A matrix (R, K) of bfloat16, kept as the upper halves of float32
in uint16, is stored as (K / 32, R, 32); the one on the right as (N / 16, K / 2, 16, 2), two rows
side by side; the result (R, N) in float32 as (N / 16, R, 16), as in gemm.py. Then every tile is one
piece of memory. Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from .bfloat16 import rounded
from .compiler import kernel
from .simd import LANES, address, has_feature, literal_intrinsic

SIDE = 16  # rows of a tile
DEPTH = 32  # bfloat16 numbers in a row of it
# Rows and columns of a result that are computed together: two by two tiles.
PAIR = 2 * SIDE

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
_BYTE, _LONG = ir.IntType(8), ir.IntType(64)
_POINTER = _BYTE.as_pointer()


@functools.cache
def available() -> bool:
    """Whether the processor has these registers, and Linux lets this process use them."""
    if sys.platform != "linux" or not (has_feature("amx-bf16") and has_feature("amx-tile")):
        return False
    # Since Linux 5.16 a process asks once, for all its threads: the registers are 8 KB of state.
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)


def tile_shapes() -> np.ndarray:
    """What `configure` takes: all eight tiles have 16 rows of 64 bytes."""
    shapes = np.zeros(64, np.uint8)
    shapes[0] = 1  # the palette
    shapes[16:32].view(np.uint16)[:] = 4 * LANES
    shapes[48:56] = SIDE
    return shapes


def _instruction(name: str, *kinds: Any) -> Any:
    """Builds a call of one of LLVM's functions for tiles."""

    def call(builder: Any, *arguments: Any) -> None:
        function = ir.FunctionType(ir.VoidType(), kinds)
        builder.call(
            cgutils.get_or_insert_function(builder.module, function, f"llvm.x86.{name}"), arguments
        )

    return call


_configure = _instruction("ldtilecfg", _POINTER)
_release = _instruction("tilerelease")
_zero = _instruction("tilezero", _BYTE)
_load = _instruction("tileloadd64", _BYTE, _POINTER, _LONG)
_store = _instruction("tilestored64", _BYTE, _POINTER, _LONG)
_dot = _instruction("tdpbf16ps", _BYTE, _BYTE, _BYTE)


@literal_intrinsic
def configure(typing: Any, shapes: Any) -> Any:
    """Take the tile registers into use on this thread."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        start = address(context, builder, sig.args[0], args[0], _LONG(0))
        _configure(builder, builder.bitcast(start, _POINTER))
        return context.get_dummy_value()

    return types.void(shapes), code


@literal_intrinsic
def release(typing: Any) -> Any:
    """Give the tile registers back: the system saves them at each switch of threads until then."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _release(builder)
        return context.get_dummy_value()

    return types.void(), code


@literal_intrinsic
def _square(
    typing: Any, a: Any, a_start: Any, a_block: Any, b: Any, b_start: Any, b_block: Any,
    c: Any, c_start: Any, c_block: Any, depth: Any,
) -> Any:  # fmt: skip
    """Two by two tiles of C = A B; `depth` counts blocks of 32."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, a_start, a_block, b, b_start, b_block, c, c_start, c_block, depth = args
        row_bytes = _LONG(4 * LANES)

        def at(position: int, array: Any, *offsets: Any) -> Any:
            index = functools.reduce(builder.add, offsets)
            pointer = address(context, builder, sig.args[position], array, index)
            return builder.bitcast(pointer, _POINTER)

        for tile in range(4):
            _zero(builder, _BYTE(tile))
        with cgutils.for_range(builder, depth) as loop:
            x = builder.add(a_start, builder.mul(loop.index, a_block))
            y = builder.add(b_start, builder.mul(loop.index, _LONG(SIDE * DEPTH)))
            _load(builder, _BYTE(4), at(0, a, x), row_bytes)
            _load(builder, _BYTE(5), at(0, a, x, _LONG(SIDE * DEPTH)), row_bytes)
            _load(builder, _BYTE(6), at(3, b, y), row_bytes)
            _load(builder, _BYTE(7), at(3, b, y, b_block), row_bytes)
            for tile in range(4):
                _dot(builder, _BYTE(tile), _BYTE(4 + tile // 2), _BYTE(6 + tile % 2))
        for tile in range(4):
            down, right = _LONG(tile // 2 * SIDE * LANES), builder.mul(_LONG(tile % 2), c_block)
            _store(builder, _BYTE(tile), at(6, c, c_start, down, right), row_bytes)
        return context.get_dummy_value()

    index = types.intp
    return types.void(a, index, index, b, index, index, c, index, index, index), code


@kernel
def multiply(shapes, a, a_block, b, depth, c, c_block, columns, start, stop):
    """C = A B for pairs of tiles of 16 rows, `start` to `stop`; `shapes` are `tile_shapes()`.

    A (depth, *, 32) and C (columns, *, 16) have `a_block` and `c_block` elements from block to
    block, B is (columns, depth * 16, 16, 2); `columns` is even. Rows are taken up to whole pairs.
    """
    b_block = depth * SIDE * DEPTH
    configure(shapes)
    for pair in range(start, stop):
        row = pair * PAIR
        for n in range(0, columns, 2):
            y, z = n * b_block, n * c_block + row * LANES
            _square(a, row * DEPTH, a_block, b, y, b_block, c, z, c_block, depth)
    release()


@kernel
def to_left(bits, out, block):
    """The bits of a float32 matrix (R, K) as bfloat16 (K / 32, *, 32), with zeros up to K."""
    rows, columns = bits.shape
    for k in range(0, columns, DEPTH):
        for r in range(rows):
            place = k // DEPTH * block + r * DEPTH
            for i in range(DEPTH):
                out[place + i] = rounded(bits[r, k + i]) if k + i < columns else np.uint16(0)


@kernel
def to_right(bits, out, depth):
    """The bits of a float32 matrix (K, N) as bfloat16 (N / 16, depth * 16, 16, 2), with zeros."""
    rows, columns = bits.shape
    out[:] = 0
    for k in range(rows):
        for n in range(columns):
            pair = (n // SIDE * depth * SIDE + k // 2) * SIDE + n % SIDE
            out[2 * pair + k % 2] = rounded(bits[k, n])
