"""Chains of formulas within reductions: what is reduced is computed where it would be loaded.

The elements are added up in the order in which the reduction's own kernel adds those it loads, so
the bits are those of the chain's own kernel and the reduction's one after the other. Arrays of the
chain may broadcast: their elements are looked up one by one, others are loaded in packs.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..formula_chain import Chain, Joined
from .formula_source import chain_code
from .kernels import FLOATS, TYPES, computing, index_dtype
from .layout import HELD, ONE, ROWS, SAME, STRIDED, Layout, layout
from .tree import End, Reduction

# Of each kind of array, its elements in a pack are `a` after `loads`.
_TEXT = """
typedef {type} T;
typedef {wide} W;
namespace formulas {{
{functions}}}
template <int N> struct Chained {{
  typedef {source}<N> Reduced;
  typedef typename Reduced::State State;
  typedef typename Reduced::Local Local;
  typedef typename Reduced::Constant Constant;
  struct Items {{ long long i; Pack<T, N> value; {items}}};
  static const int lanes = N, arrays = {arrays};
  bool whole, in_row;
  {fields}
  __device__ Reduced reduced() const {{ return Reduced{{nullptr, true}}; }}
  __device__ Constant constant(long long channel) const {{ return reduced().constant(channel); }}
  __device__ Local begin() const {{ return reduced().begin(); }}
  __device__ State finish(const Local& local, const Constant& constant) const {{
    return reduced().finish(local, constant);
  }}
  __device__ Items load(long long i) const {{
    Items items;
    items.i = i;
{loads}    return items;
  }}
  __device__ void compute(Items& items) const {{
    {packs}
    #pragma unroll
    for (int k = 0; k < N; ++k) {{
      W {values};
      formulas::values({arguments});
      items.value.element[k] = Number<T>::down(v0);
{kept}    }}
{writes}  }}
  __device__ void add(Local& local, const Constant& constant, Items& items, int l,
                      long long position) const {{
    if (l == 0) compute(items);
    reduced().add(local, constant, items.value, l, position);
  }}
}};
"""
_LOOKED_UP = """    {index} rest = 0, at;
    long long {zeros};
    #pragma unroll
    for (int k = 0; k < N; ++k) {{
      if (k == 0 || !in_row) {{
        rest = ({index})(i + k);
        {zeroed};
{places}      }} else {{
        {next};
      }}
{elements}    }}
"""


class Form(NamedTuple):
    """What a kernel is made for, besides chain and reduction: how the chain's arrays lie."""

    kinds: tuple[str, ...]
    axes: int
    index_type: str  # the type of an element's number


def form_of(found: Layout) -> Form:
    index = {4: "unsigned int", 8: "unsigned long long"}[index_dtype(found.size).itemsize]
    return Form(found.kinds, len(found.lengths), index)


@functools.lru_cache(maxsize=4096)
def _layout(*arrays: tuple[tuple[int, ...], tuple[int, ...]]) -> Layout:
    return layout(np.broadcast_shapes(*(shape for shape, _ in arrays)), arrays)


def layout_of(arrays: Sequence[Any]) -> Layout:
    """How arrays lie that broadcast to a common shape."""
    return _layout(*((a.shape, tuple(s // a.itemsize for s in a.strides)) for a in arrays))


@functools.cache
def chained(reduction: Reduction, source: str, chain: Chain, form: Form) -> Reduction:
    """The reduction of a chain's first output, which also writes the others.

    Args:
        source: name of the reduction's Source in its text; of arrays `const T* x` in packs.
    """
    dtype = reduction.dtype
    code = chain_code(chain, FLOATS[dtype])
    given = [f"a{i}" for i in range(len(chain.arrays))]
    kept = [f"r{i}" for i in range(1, len(chain.outputs))]
    numbers = [f"n{i}" for i in range(code.numbers)]
    sizes = [f"length{axis}" for axis in range(1, form.axes)]
    sizes += [name for i in range(len(given)) for name in _strides(form, i)]
    fields = [
        *(f"const T* {name}" for name in given),
        *(f"T* {name}" for name in kept),
        *(f"long long {name}" for name in sizes),
        *(f"W {name}" for name in numbers),
    ]
    packed = [name for name, kind in zip(given, form.kinds, strict=True) if kind == SAME]
    loaded = [name for name, kind in zip(given, form.kinds, strict=True) if kind != ONE]
    elements = [
        f"Number<T>::up({name}[0])" if kind == ONE else f"Number<T>::up(items.{name}.element[k])"
        for name, kind in zip(given, form.kinds, strict=True)
    ]
    values = [f"v{i}" for i in range(len(chain.outputs))]
    text = _TEXT.format(
        type=TYPES[dtype],
        wide=TYPES[computing(dtype)],
        functions=code.text,
        source=source,
        items="".join(f"Pack<T, N> {name}; " for name in loaded),
        arrays=max(len(loaded), 1),
        fields="".join(f"{field}; " for field in fields),
        loads="".join(f"    items.{a} = read<T, N>({a} + i, whole);\n" for a in packed)
        + _looked_up(form),
        packs="".join(f"Pack<T, N> pack_{name}; " for name in kept),
        values=", ".join(values),
        arguments=", ".join([*elements, *values, *numbers]),
        kept="".join(
            f"      pack_{name}.element[k] = Number<T>::down({value});\n"
            for name, value in zip(kept, values[1:], strict=True)
        ),
        writes="".join(
            f"    write<T, N>({name} + items.i, pack_{name}, whole);\n" for name in kept
        ),
    )
    whole = " && ".join([f"aligned<{{lanes}}>({name})" for name in (*packed, *kept)] or ["true"])
    in_row = f"{sizes[form.axes - 2]} % {{lanes}} == 0" if form.axes > 1 else "true"
    names = [*given, *kept, *sizes, *numbers]
    made = f"Chained<{{lanes}}>{{{', '.join([whole, in_row, *names])}}}"
    words = re.sub(r"\W+", "_", f"{reduction.name} {chain}")[:64].rstrip("_")
    parameters = ", ".join(field.replace("T*", f"{TYPES[dtype]}*") for field in fields)
    return replace(
        reduction,
        name=words,
        text=reduction.text + text,
        source=End(parameters.replace("W ", f"{TYPES[computing(dtype)]} "), made),
    )


def inputs(joined: Joined, found: Layout, dtype: str) -> tuple[Any, ...]:
    """The arguments of such a reduction's Source."""
    sizes = (*found.lengths[1:], *(stride for own in found.strides for stride in own))
    settings = _settings(joined.chain, dtype)(*joined.numbers)
    return (*joined.arrays, *joined.outs, *(np.int64(size) for size in sizes), *settings)


@functools.cache
def _settings(chain: Chain, dtype: str) -> Callable[..., list]:
    return chain_code(chain, FLOATS[dtype]).settings


def _looked_up(form: Form) -> str:
    """What loads the arrays that broadcast, or lie in strides."""
    found = [i for i, kind in enumerate(form.kinds) if kind in (ROWS, HELD, STRIDED)]
    if not found:
        return ""
    places = []
    for axis in reversed(range(form.axes)):
        length = f"({form.index_type})length{axis}"
        places.append("at = rest;" if axis == 0 else f"at = rest % {length};")
        places += [f"rest /= {length};"] * (axis > 0)
        places += [f"offset{i} += (long long)at * {_stride(form, i, axis)};" for i in found]
    return _LOOKED_UP.format(
        index=form.index_type,
        zeros=", ".join(f"offset{i} = 0" for i in found),
        zeroed=" = ".join([*(f"offset{i}" for i in found), "0"]),
        places="".join(f"        {line}\n" for line in places),
        next="; ".join(f"offset{i} += {_stride(form, i, form.axes - 1)}" for i in found),
        elements="".join(f"      items.a{i}.element[k] = a{i}[offset{i}];\n" for i in found),
    )


def _stride(form: Form, i: int, axis: int) -> str:
    """Text of an array's stride along an axis."""
    if axis == form.axes - 1 and form.kinds[i] != STRIDED:
        return "1" if form.kinds[i] == ROWS else "0"
    return f"stride{i}_{axis}"


def _strides(form: Form, i: int) -> list[str]:
    """Names of the strides of an array, as layout.Layout keeps them."""
    kept = {SAME: 0, ONE: 0, STRIDED: form.axes}.get(form.kinds[i], form.axes - 1)
    return [f"stride{i}_{axis}" for axis in range(kept)]
