"""Sixteen float32 as one value inside Numba kernels; knows nothing of what they are used for.

Numba leaves it to LLVM to find vectors in scalar loops, which it does not in anything as tangled as
a Winograd transform. `Vector` says them outright: LLVM keeps one in a register of AVX-512, in two
of AVX2 or in four of NEON. Arrays are C-contiguous and seen flat; nothing checks their bounds.

`a * b + c` of vectors is rounded once where the processor can.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

# Numba's type hints are those of the functions as they are written, with `typing`.
intrinsic: Any = extending.intrinsic
literal_intrinsic: Any = extending.intrinsic(prefer_literal=True)

LANES = 16

_FLOAT = ir.FloatType()
_INT = ir.IntType(32)
_LANES = ir.VectorType(_FLOAT, LANES)
_MASK = ir.VectorType(ir.IntType(1), LANES)
_ALIGNMENT = 4


def has_feature(name: str) -> bool:
    """Whether code is compiled for a processor with this feature, in LLVM's words: "avx512f"."""
    features = cpu_target.target_context.codegen().magic_tuple()[2]
    return f"+{name}" in features.split(",")


class Vector(types.Type):
    """The type of 16 float32."""

    def __init__(self) -> None:
        super().__init__("float32x16")


vector = Vector()
_block = types.UniTuple(vector, LANES)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, _LANES)


def _binary(operation: Callable[..., Any], instruction: str) -> None:
    """Define an operator on two vectors, or on a vector and a number."""

    @infer_global(operation)
    class _Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and vector in args:
                other = args[1] if args[0] == vector else args[0]
                if other == vector or isinstance(other, (types.Float, types.Integer)):
                    return signature(vector, *args)
            return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        operands = [
            a if kind == vector else splat(builder, context.cast(builder, a, kind, types.float32))
            for a, kind in zip(args, sig.args, strict=True)
        ]
        return getattr(builder, instruction)(*operands, flags=("contract",))

    for kinds in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(operation, *kinds)(lower)


_binary(operator.add, "fadd")
_binary(operator.sub, "fsub")
_binary(operator.mul, "fmul")


def splat(builder: Any, number: Any) -> Any:
    """A number in every lane, as LLVM code."""
    empty = ir.Constant(_LANES, ir.Undefined)
    first = builder.insert_element(empty, number, ir.Constant(_INT, 0))
    everywhere = ir.Constant(ir.VectorType(_INT, LANES), [0] * LANES)
    return builder.shuffle_vector(first, empty, everywhere)


def zeros() -> Any:
    """Sixteen zeros, as LLVM code."""
    return ir.Constant(_LANES, [0.0] * LANES)


def address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Pointer to element `index` of an array, as LLVM code."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def load_lanes(builder: Any, pointer: Any) -> Any:
    """16 numbers from a pointer to the first, as LLVM code."""
    value = builder.load(builder.bitcast(pointer, _LANES.as_pointer()))
    value.align = _ALIGNMENT
    return value


def store_lanes(builder: Any, value: Any, pointer: Any) -> None:
    """16 numbers to a pointer to the first, as LLVM code."""
    builder.store(value, builder.bitcast(pointer, _LANES.as_pointer())).align = _ALIGNMENT


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, as LLVM code; rounded once where the processor can."""
    kind = ir.FunctionType(_LANES, [_LANES] * 3)
    name = f"llvm.fmuladd.v{LANES}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [a, b, c])


def fetch(builder: Any, pointer: Any, write: bool) -> None:
    """Begin to bring what is at `pointer` into all caches, to write if `write`, as LLVM code."""
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, _INT, _INT, _INT])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [pointer, _INT(int(write)), _INT(3), _INT(1)])  # near, as data


@intrinsic
def wide_vectors(typing: Any) -> Any:
    """Let LLVM make vectors of 16 float32 of the loops of the kernel that calls this, not of 8.

    For processors with AVX-512 it prefers the shorter ones, since the first of them slowed down.
    """

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        # llvmlite knows no attributes with a value, but writes down what it is given.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), code


@intrinsic
def broadcast(typing: Any, number: Any) -> Any:
    """A number in every lane."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return splat(builder, args[0])

    return vector(types.float32), code


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """array[index : index + 16]"""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return load_lanes(builder, address(context, builder, sig.args[0], *args))

    return vector(array, types.intp), code


@intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index : index + 16] = value"""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        store_lanes(builder, args[2], address(context, builder, sig.args[0], *args[:2]))
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


@intrinsic
def load_part(typing: Any, array: Any, index: Any, count: Any) -> Any:
    """array[index : index + count], then zeros; reads no more than `count` elements."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = address(context, builder, sig.args[0], *args[:2])
        return masked_load(builder, pointer, mask_below(builder, args[2]))

    return vector(array, types.intp, types.intp), code


@intrinsic
def load_transposed(
    typing: Any, array: Any, start: Any, stride: Any, rows: Any, columns: Any
) -> Any:
    """16 vectors; lane i of vector j is array[start + i * stride + j].

    Zero for i >= rows or j >= columns; reads nothing there.
    """

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = address(context, builder, sig.args[0], *args[:2])
        loaded = [
            masked_load(builder, row, mask) for row, mask in _rows(builder, pointer, *args[2:])
        ]
        return _packed(context, builder, transposed(builder, loaded))

    return _block(array, *[types.intp] * 4), code


@intrinsic
def store_transposed(
    typing: Any, array: Any, start: Any, stride: Any, rows: Any, columns: Any, vectors: Any
) -> Any:
    """array[start + i * stride + j] = lane i of vectors[j], for i < rows and j < columns."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = address(context, builder, sig.args[0], *args[:2])
        values = transposed(builder, cgutils.unpack_tuple(builder, args[5]))
        for value, (row, mask) in zip(values, _rows(builder, pointer, *args[2:5]), strict=True):
            masked_store(builder, value, row, mask)
        return context.get_dummy_value()

    return types.void(array, *[types.intp] * 4, _block), code


@literal_intrinsic
def fetch_rows(typing: Any, array: Any, start: Any, stride: Any, write: Any) -> Any:
    """Begin to bring array[start + i * stride] into the cache, for 16 rows i; to write if `write`.

    Places outside of the array do no harm.
    """

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = address(context, builder, sig.args[0], *args[:2])
        for i in range(LANES):
            place = builder.gep(pointer, [builder.mul(args[2].type(i), args[2])])
            fetch(builder, place, write=write.literal_value)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, write), code


@intrinsic
def load_at(typing: Any, array: Any, start: Any, places: Any, first: Any) -> Any:
    """16 vectors; vector j is array[start + places[first + j] :][:16]."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointers = _pointers(context, builder, sig, args)
        return _packed(context, builder, [load_lanes(builder, p) for p in pointers])

    return _block(array, types.intp, places, types.intp), code


@intrinsic
def store_at(typing: Any, array: Any, start: Any, places: Any, first: Any, vectors: Any) -> Any:
    """array[start + places[first + j] :][:16] = vectors[j]"""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        values = cgutils.unpack_tuple(builder, args[4])
        for value, pointer in zip(values, _pointers(context, builder, sig, args), strict=True):
            store_lanes(builder, value, pointer)
        return context.get_dummy_value()

    return types.void(array, types.intp, places, types.intp, _block), code


def _pointers(context: Any, builder: Any, sig: Any, args: Any) -> list[Any]:
    start = address(context, builder, sig.args[0], *args[:2])
    table = address(context, builder, sig.args[2], *args[2:4])
    places = [builder.gep(table, [ir.Constant(_INT, j)]) for j in range(LANES)]
    return [builder.gep(start, [builder.load(place)]) for place in places]


def _packed(context: Any, builder: Any, values: list[Any]) -> Any:
    return context.make_tuple(builder, _block, values)


def mask_below(builder: Any, count: Any) -> Any:
    """The lanes below `count`, an intp, as LLVM code."""
    wide = ir.VectorType(count.type, LANES)
    empty = ir.Constant(wide, ir.Undefined)
    first = builder.insert_element(empty, count, ir.Constant(_INT, 0))
    everywhere = ir.Constant(ir.VectorType(_INT, LANES), [0] * LANES)
    counts = builder.shuffle_vector(first, empty, everywhere)
    return builder.icmp_signed("<", ir.Constant(wide, list(range(LANES))), counts)


def masked_load(builder: Any, pointer: Any, mask: Any) -> Any:
    """What lies at the lanes of a mask, and zeros, as LLVM code."""
    kind = ir.FunctionType(_LANES, [_LANES.as_pointer(), _INT, _MASK, _LANES])
    name = f"llvm.masked.load.v{LANES}f32.p0"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    pointer = builder.bitcast(pointer, _LANES.as_pointer())
    return builder.call(function, [pointer, ir.Constant(_INT, _ALIGNMENT), mask, zeros()])


def masked_store(builder: Any, value: Any, pointer: Any, mask: Any) -> None:
    """The lanes of a mask to their places, as LLVM code."""
    kind = ir.FunctionType(ir.VoidType(), [_LANES, _LANES.as_pointer(), _INT, _MASK])
    name = f"llvm.masked.store.v{LANES}f32.p0"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    pointer = builder.bitcast(pointer, _LANES.as_pointer())
    builder.call(function, [value, pointer, ir.Constant(_INT, _ALIGNMENT), mask])


def _rows(
    builder: Any, pointer: Any, stride: Any, rows: Any, columns: Any
) -> list[tuple[Any, Any]]:
    """The pointer to each of 16 rows, and the mask of its elements."""
    inside, outside = mask_below(builder, columns), ir.Constant(_MASK, [0] * LANES)
    result = []
    for i in range(LANES):
        number = ir.Constant(rows.type, i)
        mask = builder.select(builder.icmp_signed("<", number, rows), inside, outside)
        result.append((builder.gep(pointer, [builder.mul(number, stride)]), mask))
    return result


def transposed(builder: Any, vectors: list[Any]) -> list[Any]:
    """The transposed 16 x 16 block: four times, each vector is interleaved with the one 8 on."""
    half = LANES // 2
    interleaved = [lane + LANES * second for lane in range(LANES) for second in range(2)]
    low = ir.Constant(ir.VectorType(_INT, LANES), interleaved[:LANES])
    high = ir.Constant(ir.VectorType(_INT, LANES), interleaved[LANES:])
    for _ in range(LANES.bit_length() - 1):
        vectors = [
            builder.shuffle_vector(vectors[i], vectors[i + half], order)
            for i in range(half)
            for order in (low, high)
        ]
    return vectors
