"""The tile registers (AMX) of newer Xeons: products of bfloat16 matrices, summed in float32.

A tile holds 16 rows of 64 bytes: 32 bfloat16 numbers of a row of the matrix on the left, two
neighbours of each of 16 columns of the one on the right, or 16 float32 of the result.
Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from .simd import LANES, address, has_feature, literal_intrinsic

SIDE = 16  # rows of a tile
DEPTH = 32  # bfloat16 numbers in a row of it
TILE = SIDE * DEPTH
# Rows and columns of a result that are computed together: two by two tiles.
PAIR = 2 * SIDE

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
_BYTE, _LONG = ir.IntType(8), ir.IntType(64)
_POINTER = _BYTE.as_pointer()


@functools.cache
def problem() -> str | None:
    """Why these registers cannot be used; None if they can."""
    if sys.platform != "linux" or not (has_feature("amx-bf16") and has_feature("amx-tile")):
        return "this processor has no tile registers for bfloat16 (AMX)"
    # Since Linux 5.16 a process asks once, for all its threads: the registers are 8 KB of state.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) != 0:
        reason = os.strerror(ctypes.get_errno())
        return f"Linux does not let this process use the tile registers (AMX): {reason}"
    return None


def available() -> bool:
    """Whether the processor has these registers, and Linux lets this process use them."""
    return problem() is None


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


# A square is two by two tiles of a result, in registers 0 to 3.


@literal_intrinsic
def clear_square(typing: Any) -> Any:
    """C = 0"""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        for tile in range(4):
            _zero(builder, _BYTE(tile))
        return context.get_dummy_value()

    return types.void(), code


@literal_intrinsic
def add_square(
    typing: Any, a: Any, a_start: Any, a_step: Any, a_next: Any, b: Any, b_start: Any, b_step: Any,
    b_next: Any, depth: Any,
) -> Any:  # fmt: skip
    """C += A B; `depth` counts blocks of 32, which lie `a_step` and `b_step` apart.

    `a_next` and `b_next` lead from the first of two tiles to the second.
    """

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, a_start, a_step, a_next, b, b_start, b_step, b_next, depth = args
        row_bytes = _LONG(4 * LANES)

        def load(tile: int, position: int, array: Any, *offsets: Any) -> None:
            index = functools.reduce(builder.add, offsets)
            pointer = address(context, builder, sig.args[position], array, index)
            _load(builder, _BYTE(tile), builder.bitcast(pointer, _POINTER), row_bytes)

        with cgutils.for_range(builder, depth) as loop:
            x = builder.add(a_start, builder.mul(loop.index, a_step))
            y = builder.add(b_start, builder.mul(loop.index, b_step))
            load(4, 0, a, x)
            load(6, 4, b, y)
            _dot(builder, _BYTE(0), _BYTE(4), _BYTE(6))
            load(7, 4, b, y, b_next)
            _dot(builder, _BYTE(1), _BYTE(4), _BYTE(7))
            load(5, 0, a, x, a_next)
            _dot(builder, _BYTE(2), _BYTE(5), _BYTE(6))
            _dot(builder, _BYTE(3), _BYTE(5), _BYTE(7))
        return context.get_dummy_value()

    index = types.intp
    return types.void(a, index, index, index, b, index, index, index, index), code


def _places(context: Any, builder: Any, kind: Any, c: Any, c_start: Any, c_next: Any) -> list:
    """Pointers to the four tiles of a square in memory."""
    found = []
    for tile in range(4):
        down, right = _LONG(tile // 2 * SIDE * LANES), builder.mul(_LONG(tile % 2), c_next)
        index = builder.add(builder.add(c_start, down), right)
        found.append(builder.bitcast(address(context, builder, kind, c, index), _POINTER))
    return found


@literal_intrinsic
def load_square(typing: Any, c: Any, c_start: Any, c_next: Any) -> Any:
    """C from memory, where store_square has put it."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        for tile, pointer in enumerate(_places(context, builder, sig.args[0], *args)):
            _load(builder, _BYTE(tile), pointer, _LONG(4 * LANES))
        return context.get_dummy_value()

    return types.void(c, types.intp, types.intp), code


@literal_intrinsic
def store_square(typing: Any, c: Any, c_start: Any, c_next: Any) -> Any:
    """C to memory as (2, 32, 16): two blocks of columns, `c_next` apart."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        for tile, pointer in enumerate(_places(context, builder, sig.args[0], *args)):
            _store(builder, _BYTE(tile), pointer, _LONG(4 * LANES))
        return context.get_dummy_value()

    return types.void(c, types.intp, types.intp), code
