"""Formulas on device arrays: one launch each, of a kernel made for the formula and the layout."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..formula import Formula
from ..formula_chain import Chain, Link
from .formula_source import DeviceCode, chain_code, common_dtype, formula_code
from .kernels import FLOATS, THREADS, TYPES, Kernel, blocks_for, kernel
from .layout import HELD, ONE, ROWS, SAME, STRIDED, layout
from .pack import header, pack_length

_SUM = Formula("a + b", ("a", "b"), ())
# Up to here indices of 32 bits, which divide much faster, cannot overflow.
_SMALL = 2**30


def evaluate(
    formula: Formula, arrays: Mapping[str, Any], numbers: Mapping[str, float], out: Any
) -> Any:
    """out = formula; returns out.

    Args:
        formula: over the names of `arrays` and `numbers`.
        arrays: of any strides, of out's shape or with axes of length 1 that broadcast.
        numbers: computed with on the host, in double precision.
        out: C-contiguous; it may be one of the arrays, but not overlap one in another way.
    Raises: ValueError where an array does not broadcast to out, or out is not C-contiguous.
    """
    values = [arrays[name] for name in formula.arrays]
    _run(formula, values, [numbers[name] for name in formula.numbers], [out])
    return out


def evaluate_chain(
    chain: Chain, arrays: Sequence[Any], numbers: Sequence[float], outs: Sequence[Any]
) -> None:
    """Compute the outputs of a chain, in one launch.

    Args:
        arrays, numbers: as for `evaluate`, in the order of the chain's names.
        outs: C-contiguous, of one shape and dtype, in the order of the chain's outputs.
    """
    _run(chain, arrays, numbers, outs)


def _run(
    text: Formula | Chain, arrays: Sequence[Any], numbers: Sequence[float], outs: Sequence[Any]
) -> None:
    launch = _launch(text, *[(a.shape, a.strides, a.dtype) for a in (outs[0], *arrays)])
    if launch is not None:
        settings = launch.settings(*numbers)
        launch.kernel(launch.blocks, THREADS, *arrays, *outs, *launch.sizes, *settings)


def add(a: Any, b: Any, out: Any) -> Any:
    """out = a + b, computed in the wider dtype of a and b and rounded to that of out."""
    return evaluate(_SUM, {"a": a, "b": b}, {}, out)


_Array = tuple[tuple[int, ...], tuple[int, ...], np.dtype]  # shape, strides in bytes, dtype


class _Launch(NamedTuple):
    """What calls of equal shapes, strides and dtypes share."""

    kernel: Kernel
    blocks: int
    sizes: tuple[np.int64, ...]
    settings: Callable[..., list]


@functools.lru_cache(maxsize=16384)
def _launch(formula: Formula | Chain, out: _Array, *arrays: _Array) -> _Launch | None:
    """None where there is nothing to do."""
    (shape, _, dtype), dtypes = out, tuple(d for *_, d in arrays)
    own, *elements = [
        (n, tuple(s // d.itemsize for s in strides)) for n, strides, d in (out, *arrays)
    ]
    found = layout(shape, elements)
    if found.size == 0:
        return None
    if layout(shape, [own]).kinds != (SAME,):
        raise ValueError(f"out, of shape {shape}, is not C-contiguous; pass an array that is")
    pack = pack_length((*dtypes, dtype))
    if not found.packs(pack):
        pack = 1
    index = "unsigned int" if found.size <= _SMALL else "unsigned long long"
    outs = len(formula.outputs) if isinstance(formula, Chain) else 1
    form = _Form(dtypes, dtype, found.kinds, len(found.lengths), pack, index, outs)
    sizes = (found.size, *found.lengths[1:], *(s for own in found.strides for s in own))
    return _Launch(
        kernel(_name(formula), _source(formula, form)),
        blocks_for(-(-found.size // pack)),
        tuple(np.int64(size) for size in sizes),
        _code(formula, form).settings,
    )


class _Form(NamedTuple):
    """What a kernel is made for, besides its formula."""

    dtypes: tuple[np.dtype, ...]
    out: np.dtype
    kinds: tuple[str, ...]
    axes: int
    pack: int  # elements
    index_type: str  # of an element's number
    outs: int = 1


def _name(formula: Formula | Chain) -> str:
    """The kernel's name, which profilers show."""
    kind = "chain" if isinstance(formula, Chain) else "formula"
    return f"{kind}_" + re.sub(r"\W+", "_", str(formula))[:48]


@functools.cache
def _code(formula: Formula | Chain, form: _Form) -> DeviceCode:
    if isinstance(formula, Chain):
        return chain_code(formula, form.out)
    return formula_code(formula, common_dtype(form.dtypes or (form.out,)))


_KERNEL = """{header}
{function}
typedef {index} Index;

// Elements begin to end, V at a time; their number is a multiple of V.
template <int V>
static __device__ __forceinline__ void run(Index begin, Index end, {parameters}) {{
{before}  const Index step = (Index)gridDim.x * blockDim.x * V;
  for (Index i = begin + ((Index)blockIdx.x * blockDim.x + threadIdx.x) * V; i < end; i += step) {{
{inside}{results}#pragma unroll
    for (int k = 0; k < V; ++k) {{
{values}    }}
{stores}  }}
}}

extern "C" __global__ void {name}({parameters}) {{
{calls}}}
"""


@functools.cache
def _source(formula: Formula | Chain, form: _Form) -> str:
    code = _code(formula, form)
    pointers = [f"const {TYPES[d.char]}* a{i}" for i, d in enumerate(form.dtypes)]
    out = TYPES[form.out.char]
    outs = _outs(form)
    pointers += [f"{out}* {name}" for name in outs]
    lengths = [f"length{axis}" for axis in range(1, form.axes)]
    strides = [name for i in range(len(form.kinds)) for name in _strides(form, i)]
    sizes = ["size", *lengths, *strides]
    numbers = [f"n{i}" for i in range(code.numbers)]
    names = [*(f"a{i}" for i in range(len(form.dtypes))), *outs, *sizes, *numbers]
    before, inside = _loads(form)
    return _KERNEL.format(
        header=header((*form.dtypes, form.out)),
        function=code.text,
        index=form.index_type,
        parameters=", ".join(
            [*pointers, *(f"long long {n}" for n in sizes), *(f"T {n}" for n in numbers)]
        ),
        before="".join(f"  {line}\n" for line in before),
        inside="".join(f"    {line}\n" for line in inside),
        results="".join(f"    Pack<{out}, V> result_{name};\n" for name in outs),
        values="".join(f"      {line}\n" for line in _values(formula, form, numbers)),
        stores="".join(f"    pack<V>({name} + i) = result_{name};\n" for name in outs),
        name=_name(formula),
        calls="".join(f"  {line}\n" for line in _calls(form, ", ".join(names))),
    )


def _outs(form: _Form) -> list[str]:
    return ["out"] if form.outs == 1 else [f"out{i}" for i in range(form.outs)]


def _values(formula: Formula | Chain, form: _Form, numbers: list[str]) -> list[str]:
    """What computes element k of each result."""
    out, outs = TYPES[form.out.char], _outs(form)
    elements = [_element(form, i) for i in range(len(form.kinds))]
    if isinstance(formula, Formula):
        return [f"result_out.element[k] = ({out})value({', '.join([*elements, *numbers])});"]
    values = [f"r{i}" for i in range(len(outs))]
    return [
        f"T {', '.join(values)};",
        f"values({', '.join([*elements, *values, *numbers])});",
        *(f"result_{o}.element[k] = ({out}){v};" for o, v in zip(outs, values, strict=True)),
    ]


def _calls(form: _Form, arguments: str) -> list[str]:
    """Packs where all arrays begin at one, then the elements that are left."""
    if form.pack == 1:
        return [f"run<1>(0, (Index)size, {arguments});"]
    packed = [f"a{i}" for i, kind in enumerate(form.kinds) if kind in (SAME, ROWS)] + _outs(form)
    aligned = " && ".join(f"aligned<{form.pack}>({name})" for name in packed)
    return [
        f"const Index packed = {aligned} ? (Index)(size - size % {form.pack}) : 0;",
        f"run<{form.pack}>(0, packed, {arguments});",
        f"run<1>(packed, (Index)size, {arguments});",
    ]


def _loads(form: _Form) -> tuple[list[str], list[str]]:
    """What is loaded before the loop over elements, and in it."""
    before, inside = [], []
    placed = [i for i, kind in enumerate(form.kinds) if kind not in (SAME, ONE)]
    if placed:
        inside += ["Index rest = i, at;"] + [f"long long offset{i} = 0;" for i in placed]
    for axis in reversed(range(form.axes) if placed else ()):
        inside.append("at = rest;" if axis == 0 else f"at = rest % (Index)length{axis};")
        if axis > 0:
            inside.append(f"rest /= (Index)length{axis};")
        for i in placed:
            strides = _strides(form, i)
            if axis < len(strides):
                inside.append(f"offset{i} += (long long)at * {strides[axis]};")
            elif form.kinds[i] == ROWS:
                inside.append(f"offset{i} += at;")
    for i, (kind, dtype) in enumerate(zip(form.kinds, form.dtypes, strict=True)):
        element = TYPES[dtype.char]
        if kind == ONE:
            before.append(f"const T x{i} = (T)a{i}[0];")
        elif kind in (SAME, ROWS):
            place = "i" if kind == SAME else f"offset{i}"
            inside.append(f"const Pack<{element}, V> p{i} = pack<V>(a{i} + {place});")
        else:
            inside.append(f"const T x{i} = (T)a{i}[offset{i}];")
    return before, inside


def _element(form: _Form, i: int) -> str:
    """Element k of a pack of array i, as an argument of the formula."""
    return f"(T)p{i}.element[k]" if form.kinds[i] in (SAME, ROWS) else f"x{i}"


def _strides(form: _Form, i: int) -> list[str]:
    """Names of the strides of array i, as layout.Layout keeps them."""
    kept = {SAME: 0, ONE: 0, STRIDED: form.axes}.get(form.kinds[i], form.axes - 1)
    return [f"stride{i}_{axis}" for axis in range(kept)]


def contiguous_source(formula: Formula, dtypes: Sequence[np.dtype], out: np.dtype) -> str:
    """CUDA source of the kernel of a formula on contiguous arrays of `dtypes`."""
    pack = pack_length((*dtypes, out))
    kinds = (SAME,) * len(dtypes)
    return _source(formula, _Form(tuple(dtypes), out, kinds, 1, pack, "unsigned int"))


def sources() -> Iterator[tuple[str, str]]:
    """(name, CUDA source) of the kernels of a sum, for all dtypes and every kind of layout.

    And of a chain, for all dtypes.
    """
    single = FLOATS["f"]
    for dtypes in itertools.product(FLOATS.values(), repeat=3):
        yield _name(_SUM), contiguous_source(_SUM, dtypes[:2], dtypes[2])
    links = [Link("s", _SUM.tree), Link("t", Formula("exp(s) * k", ("s",), ("k",)).tree)]
    for dtype in FLOATS.values():
        for outputs in (("t",), ("s", "t")):
            chain = Chain(links, ("a", "b"), ("k",), outputs)
            pack = pack_length((dtype,) * 3)
            form = _Form((dtype,) * 2, dtype, (SAME, ROWS), 2, pack, "unsigned int", len(outputs))
            yield _name(chain), _source(chain, form)
    for kinds in itertools.product((SAME, ONE, ROWS, HELD, STRIDED), repeat=2):
        for axes, index_type in ((2, "unsigned int"), (4, "unsigned long long")):
            for pack in (1,) if STRIDED in kinds else (1, 4):
                form = _Form((single, single), single, kinds, axes, pack, index_type)
                yield _name(_SUM), _source(_SUM, form)
