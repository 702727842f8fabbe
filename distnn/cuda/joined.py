"""Chains of formulas within kernels of other functions: what a kernel's text needs for that.

A kernel on packs of T, which computes in W, loads the chain's arrays with its own (`items.a0`),
computes the chain element by element, and stores its outputs (`r0`).
"""

from __future__ import annotations

import re

from ..formula import Formula
from ..formula_chain import Chain, Link
from .formula_source import chain_code
from .kernels import FLOATS

# The value as it is: what a function computes alone.
IDENTITY = Chain([Link("r", Formula("y", ("y",), ()).tree)], ("y",), (), ("r",))


class Text:
    """The pieces of a kernel's text that compute a chain.

    Args:
        dtype: character of T.
        given: how many of the chain's arrays, its first, the kernel computes itself.
        taken: how many of its outputs, the first, the kernel uses itself.
        stores: whether the kernel stores the other outputs.
    """

    def __init__(self, chain: Chain, dtype: str, given: int, taken: int, stores: bool) -> None:
        code = chain_code(chain, FLOATS[dtype])
        self.settings = code.settings  # of the chain's numbers: values of the parameters n0, ...
        self.loaded = [f"a{i}" for i in range(given, len(chain.arrays))]
        self._outputs = range(len(chain.outputs))
        self._stored = [i for i in self._outputs if i >= taken and stores]
        self._numbers = [f"n{i}" for i in range(code.numbers)]
        self._given = given
        self.functions = f"namespace formulas {{\n{code.text}}}\n"
        words = "" if chain is IDENTITY else re.sub(r"\W+", "_", f" {chain}")[:48].rstrip("_")
        self.label = words + f"_{len(self._stored)}" * bool(words)

    @property
    def _declared(self) -> list[str]:
        arrays = [f"const T* {name}" for name in self.loaded]
        return [*arrays, *(f"T* r{i}" for i in self._stored), *(f"W {n}" for n in self._numbers)]

    @property
    def fields(self) -> str:
        """Of a struct, and `parameters` of a kernel, with the `arguments` that fill the one."""
        return "".join(f"{field}; " for field in self._declared)

    @property
    def parameters(self) -> str:
        return "".join(f", {parameter}" for parameter in self._declared)

    @property
    def arguments(self) -> str:
        names = [*self.loaded, *(f"r{i}" for i in self._stored), *self._numbers]
        return "".join(f", {name}" for name in names)

    @property
    def items(self) -> str:
        """What `loads` loads at i, after the kernel's own packs."""
        return "".join(f", {name}" for name in self.loaded)

    @property
    def loads(self) -> str:
        return "".join(f", read<T, N>({name} + i, whole)" for name in self.loaded)

    def whole(self, lanes: str) -> str:
        """Whether all arrays begin at a pack."""
        names = [*self.loaded, *(f"r{i}" for i in self._stored)]
        return "".join(f" && aligned<{lanes}>({name})" for name in names)

    @property
    def packs(self) -> str:
        return "".join(f"Pack<T, N> pack{i}; " for i in self._stored)

    def compute(self, *given: str) -> str:
        """The outputs v0, ... of element l, for the values of the arrays that are given.

        Those are rounded to T, as they are where they are stored.
        """
        assert len(given) == self._given
        values = [f"Number<T>::up(Number<T>::down({value}))" for value in given]
        values += [f"Number<T>::up(items.{name}.element[l])" for name in self.loaded]
        outputs = [f"v{i}" for i in self._outputs]
        call = f"formulas::values({', '.join([*values, *outputs, *self._numbers])});"
        kept = [f" pack{i}.element[l] = Number<T>::down(v{i});" for i in self._stored]
        return f"W {', '.join(outputs)}; {call}{''.join(kept)}"

    @property
    def writes(self) -> str:
        return "".join(f"write<T, N>(r{i} + i, pack{i}, whole); " for i in self._stored)
