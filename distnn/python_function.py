"""PythonFunction: a user's own function in NNabla's form, for scripts that have some.

New functions are simpler to write as a Function (function.py), which also gives them derivatives of
any order; a PythonFunction has the one that its backward_impl computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import transfer
from .calling import call
from .errors import GraphError, ShapeError
from .function import Declaration, Function, Rule, Spec
from .ndarray import NdArray
from .storage import Storage
from .variable import Variable


class PythonFunction:
    """Base of functions with `setup_impl`, `forward_impl` and `backward_impl`.

    Methods get inputs and outputs as lists of Variables (`d`, `g`, `shape`, `reset_shape`).

        name: a property, the name of the function.
        min_outputs(): number of outputs.
        setup_impl(inputs, outputs): set shapes by `outputs[0].reset_shape(shape, True)`.
        forward_impl(inputs, outputs): write `outputs[0].d`.
        backward_impl(inputs, outputs, propagate_down, accum): for each input i with
            propagate_down[i], add to `inputs[i].g` if accum[i], else overwrite it.

    >>> import numpy as np, distnn as nn
    >>> class Double(nn.function.PythonFunction):
    ...     @property
    ...     def name(self):
    ...         return "Double"
    ...     def min_outputs(self):
    ...         return 1
    ...     def setup_impl(self, inputs, outputs):
    ...         outputs[0].reset_shape(inputs[0].shape, True)
    ...     def forward_impl(self, inputs, outputs):
    ...         outputs[0].d = 2 * inputs[0].d
    ...     def backward_impl(self, inputs, outputs, propagate_down, accum):
    ...         if propagate_down[0]:
    ...             inputs[0].g = 2 * outputs[0].g + (inputs[0].g if accum[0] else 0)
    >>> y = Double()(nn.Variable.from_numpy_array(np.array([1., 2.])))
    >>> y.forward(); y.d
    array([2., 4.], dtype=float32)
    """

    def __init__(self, ctx: Any = None) -> None:
        self.ctx = ctx

    @property
    def name(self) -> str:
        return type(self).__name__

    def min_outputs(self) -> int:
        return 1

    def setup_impl(self, inputs: list[Variable], outputs: list[Variable]) -> None:
        raise NotImplementedError

    def forward_impl(self, inputs: list[Variable], outputs: list[Variable]) -> None:
        raise NotImplementedError

    def backward_impl(
        self,
        inputs: list[Variable],
        outputs: list[Variable],
        propagate_down: list[bool],
        accum: list[bool],
    ) -> None:
        raise NotImplementedError

    def grad_depends_output_data(self, i: int, o: int) -> bool:
        """Whether the gradient of input i reads the data of output o."""
        return True

    def grad_depends_input_data(self, i: int, j: int) -> bool:
        """Whether the gradient of input i reads the data of input j."""
        return True

    def __call__(self, *inputs: Any) -> Any:
        return call(_Adapter(self, len(inputs)), *inputs)


class _Adapter(Function, by_signature=False):
    """A PythonFunction as the engine sees it."""

    waits = False
    recomputable = False  # what users write may remember things

    def __init__(self, wrapped: PythonFunction, n_inputs: int) -> None:
        self._wrapped = wrapped
        names = [f"x{i}" for i in range(n_inputs)]
        outputs = [f"y{i}" for i in range(wrapped.min_outputs())]
        reads = [
            x
            for j, x in enumerate(names)
            if any(wrapped.grad_depends_input_data(i, j) for i in range(n_inputs))
        ]
        reads += [
            y
            for o, y in enumerate(outputs)
            if any(wrapped.grad_depends_output_data(i, o) for i in range(n_inputs))
        ]
        rule = Rule(("d" + outputs[0],), self._no_rule)
        self.declaration = Declaration(
            name=wrapped.name,
            inputs=names,
            outputs=outputs,
            rules=dict.fromkeys(names, rule),
            forward_names=(),
            backward_names=[*("d" + y for y in outputs), *reads],
        )
        self._shapes: list[tuple[int, ...]] = []

    def key(self) -> tuple:
        raise TypeError("a PythonFunction may keep anything between calls")

    def _no_rule(self, function: Function, xp: Any, **names: Any) -> Any:
        raise GraphError(
            f"[grad] {self.name} is a PythonFunction: backward() works, nn.grad() needs a Function "
            "with grad_<input> rules (distnn.function)"
        )

    def setup(self, *specs: Spec, **_: Any) -> tuple[Spec, ...]:
        self._shapes = [s.shape for s in specs]
        dtype = specs[0].dtype if specs else np.dtype(np.float32)
        inputs = [Variable(s.shape) for s in specs]
        outputs = [Variable() for _ in self.declaration.outputs]
        self._wrapped.setup_impl(inputs, outputs)
        self._result_shapes = [y.shape for y in outputs]
        return tuple(Spec(y.shape, dtype) for y in outputs)

    def forward(self, xp: Any, *arrays: Any) -> Any:
        inputs = [_variable(xp, a) for a in arrays]
        dtype = arrays[0].dtype
        outputs = [_variable(xp, xp.zeros(s, dtype)) for s in self._result_shapes]
        self._wrapped.forward_impl(inputs, outputs)
        for y, shape in zip(outputs, self._result_shapes, strict=True):
            if y.shape != shape:
                raise ShapeError(
                    f"[{self.name}] forward_impl changed an output from {shape} to {y.shape}"
                )
        return tuple(y.data.read(dtype) for y in outputs)

    def backward(self, xp: Any, need: Any, *, out: Any, **names: Any) -> None:
        inputs = [
            _variable(xp, names.get(name), shape)
            for name, shape in zip(self.declaration.inputs, self._shapes, strict=True)
        ]
        outputs = []
        for name, shape in zip(self.declaration.outputs, self._result_shapes, strict=True):
            y = _variable(xp, names.get(name), shape)
            dy = names.get("d" + name)
            y.g = 0 if dy is None else dy
            outputs.append(y)
        self._wrapped.backward_impl(inputs, outputs, list(need), [False] * len(inputs))
        for x, memory in zip(inputs, out, strict=True):
            if memory is not None:
                transfer.copy(memory, x.grad.read(memory.dtype))


def _variable(xp: Any, array: Any, shape: Sequence[int] | None = None) -> Variable:
    """A Variable over `array`; one whose data cannot be read if it was not kept."""
    if array is None:
        assert shape is not None
        variable = Variable(tuple(shape))
        variable.data.clear()
        return variable
    storage = Storage(array.shape, array.dtype, None)
    storage.place(xp.ascontiguousarray(array).reshape(array.shape))
    variable = Variable(array.shape)
    variable.data = NdArray._of(storage, array.shape)
    return variable
