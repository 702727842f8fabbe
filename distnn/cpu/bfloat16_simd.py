"""Vectors of bfloat16 inside Numba kernels: loads, stores, and blocks of 32 x 16 turned over.

As simd.py, for numbers of two bytes in arrays of uint16, which are C-contiguous and seen flat.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from .simd import LANES, address, intrinsic, literal_intrinsic, transposed, vector

_INT = ir.IntType(32)
_WORDS = ir.VectorType(_INT, LANES)
_HALVES = ir.VectorType(ir.IntType(16), LANES)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_ALIGNMENT = 2


def _every(number: int) -> Any:
    return ir.Constant(_WORDS, [number] * LANES)


def _read(builder: Any, pointer: Any, kind: Any) -> Any:
    value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    value.align = _ALIGNMENT
    return value


def _write(builder: Any, value: Any, pointer: Any) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = _ALIGNMENT


def _rounded(builder: Any, value: Any) -> Any:
    """Sixteen float32 as bits of bfloat16 in words: as bfloat16.rounded does."""
    bits = builder.bitcast(value, _WORDS)
    high = builder.lshr(bits, _every(16))
    odd = builder.and_(high, _every(1))
    nearest = builder.lshr(builder.add(builder.add(bits, odd), _every(0x7FFF)), _every(16))
    size = builder.and_(bits, _every(0x7FFFFFFF))
    nan = builder.icmp_unsigned(">", size, _every(0x7F800000))
    return builder.select(nan, builder.or_(high, _every(0x40)), nearest)


@intrinsic
def load_wide(typing: Any, array: Any, index: Any) -> Any:
    """array[index : index + 16] in float32."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        halves = _read(builder, address(context, builder, sig.args[0], *args), _HALVES)
        words = builder.shl(builder.zext(halves, _WORDS), _every(16))
        return builder.bitcast(words, _FLOATS)

    return vector(array, types.intp), code


@intrinsic
def store_rounded(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index : index + 16] = value, rounded."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = address(context, builder, sig.args[0], *args[:2])
        _write(builder, builder.trunc(_rounded(builder, args[2]), _HALVES), pointer)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


@literal_intrinsic
def move(
    typing: Any, x: Any, start: Any, stride: Any, y: Any, place: Any, step: Any,
    across: Any, turned: Any,
) -> Any:  # fmt: skip
    """Sixteen vectors of 16 pairs of x, each to y[place + i * step :][:32].

    Pair j of vector i is x[start + i * stride + 2 * j] and the number after it; if `across`,
    x[start + 2 * i * stride + j] and the one in the row below. If `turned`, i and j change places.
    """

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, start, stride, y, place, step = args[:6]
        number = stride.type
        source = address(context, builder, sig.args[0], x, start)

        def row(i: int, kind: Any) -> Any:
            return _read(builder, builder.gep(source, [builder.mul(number(i), stride)]), kind)

        if across.literal_value:
            rows = [builder.zext(row(i, _HALVES), _WORDS) for i in range(2 * LANES)]
            pairs = [
                builder.or_(rows[2 * i], builder.shl(rows[2 * i + 1], _every(16)))
                for i in range(LANES)
            ]
        else:
            pairs = [row(i, _WORDS) for i in range(LANES)]
        if turned.literal_value:
            pairs = _turned(builder, pairs)
        target = address(context, builder, sig.args[3], y, place)
        for i, pair in enumerate(pairs):
            _write(builder, pair, builder.gep(target, [builder.mul(number(i), step)]))
        return context.get_dummy_value()

    index = types.intp
    return types.void(x, index, index, y, index, index, across, turned), code


@intrinsic
def spread(typing: Any, x: Any, start: Any, stride: Any, y: Any, place: Any, step: Any) -> Any:
    """The other way round: y[place + k * step + i] = x[start + i * stride + k], 16 i and 32 k."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, start, stride, y, place, step = args
        number = stride.type
        source = address(context, builder, sig.args[0], x, start)
        pairs = [
            _read(builder, builder.gep(source, [builder.mul(number(i), stride)]), _WORDS)
            for i in range(LANES)
        ]
        target = address(context, builder, sig.args[3], y, place)
        for k, pair in enumerate(_turned(builder, pairs)):
            for i, half in enumerate((pair, builder.lshr(pair, _every(16)))):
                where = builder.gep(target, [builder.mul(number(2 * k + i), step)])
                _write(builder, builder.trunc(half, _HALVES), where)
        return context.get_dummy_value()

    index = types.intp
    return types.void(x, index, index, y, index, index), code


@intrinsic
def spread_floats(
    typing: Any, x: Any, start: Any, stride: Any, y: Any, place: Any, step: Any
) -> Any:
    """y[place + k * step + i] = x[start + i * stride + k] of float32, 16 i and 16 k."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, start, stride, y, place, step = args
        number = stride.type
        source = address(context, builder, sig.args[0], x, start)
        rows = [
            _read(builder, builder.gep(source, [builder.mul(number(i), stride)]), _FLOATS)
            for i in range(LANES)
        ]
        target = address(context, builder, sig.args[3], y, place)
        for k, row in enumerate(transposed(builder, rows)):
            _write(builder, row, builder.gep(target, [builder.mul(number(k), step)]))
        return context.get_dummy_value()

    index = types.intp
    return types.void(x, index, index, y, index, index), code


def _turned(builder: Any, words: list[Any]) -> list[Any]:
    """The transposed 16 x 16 block of words."""
    floats = transposed(builder, [builder.bitcast(word, _FLOATS) for word in words])
    return [builder.bitcast(value, _WORDS) for value in floats]
