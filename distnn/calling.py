"""What happens when a function is called: on Variables it records, on NdArrays it computes.

In dynamic mode (`auto_forward`) a call on Variables records and computes.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from .context import (
    compute_recorded,
    current_backend,
    get_auto_forward,
    is_deferring,
    is_recording,
)
from .errors import ArgumentError, DtypeError, GraphError
from .function import Function, prepare
from .graph import Node, needs, shapes_of
from .hooks import NO_HOOKS, function_hooks
from .ndarray import NdArray
from .recompute import is_recomputing, marked
from .record import current_record
from .storage import Storage
from .value import Value
from .variable import Variable

_NO_HOOKS = (None, None)


def call(function: Function, *inputs: Any, **operands: Any) -> Any:
    """Call `function`; returns its output, or a tuple if it has several.

    Args:
        inputs: Variables, or NdArrays: with at least one NdArray the result is computed at once
            and returned as NdArrays. None for an optional input that is absent.
        operands: the numbers that the function's forward takes by keyword.
    """
    imperative = False
    values: list[Value | None] = []
    for i, x in enumerate(inputs):
        if isinstance(x, Variable):
            values.append(x._value)
        elif isinstance(x, NdArray):
            imperative = True
            value = Value(x.shape)
            value._data = x
            values.append(value)
        elif x is None:
            values.append(None)
        else:
            raise DtypeError(
                f"[{function.name}] input {_input_name(function, i)} is {type(x).__name__}; pass a "
                "Variable or an NdArray (Variable.from_numpy_array makes one)"
            )
    declaration = function.declaration
    if not declaration.variadic:
        values += [None] * (len(declaration.inputs) - len(values))  # optional ones left out
    if (operands or declaration.operands) and operands.keys() != declaration.operand_set:
        raise ArgumentError(
            f"[{function.name}] got operands {sorted(operands)} but takes "
            f"{sorted(declaration.operands)}"
        )
    sources = tuple(values)
    if declaration.updates:
        _mark_volatile(function, sources)
    backend, recording = current_backend(), is_recording()
    if (
        get_auto_forward()
        and is_deferring()
        and not imperative
        and function_hooks(_NO_HOOKS) is NO_HOOKS
    ):
        results = current_record().add(function, backend, sources, operands, recording)
        if results is not None:
            return results[0] if len(results) == 1 else tuple(results)
    setup = prepare(function, shapes_of(sources), backend)
    if imperative:
        need = (False,) * len(sources)
        return _computed(Node(setup, sources, operands, True, need), recording=False, arrays=True)
    need = needs(setup, sources) if recording else (False,) * len(sources)
    if get_auto_forward():
        compute_recorded()
        node = Node(setup, sources, operands, True, need)
        return _computed(node, recording, arrays=False)
    node = Node(setup, sources, operands, False, need)
    outputs = []
    for i, spec in enumerate(setup.outputs):
        value = Value(spec.shape, None if recording else False, node, i)
        value.recompute = is_recomputing()
        node.targets[i] = weakref.ref(value)
        outputs.append(Variable._of(value))
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _computed(node: Node, recording: bool, arrays: bool) -> Any:
    """Run a new node at once and return its outputs."""
    setup = node.setup
    results = []
    values = []
    for i, spec in enumerate(setup.outputs):
        value = Value(spec.shape, None, node, i)
        data = NdArray._of(Storage(spec.shape, spec.dtype, None), spec.shape)
        value.hold_weakly(data)
        value.recompute = recording and is_recomputing()
        node.targets[i] = weakref.ref(value)
        values.append(value)
        results.append(data)
    node.forgets = marked(node)
    pre, post = function_hooks(_NO_HOOKS)
    for hook in pre:
        hook(node)
    with np.errstate(all="ignore"):
        node.execute()
    for hook in post:
        hook(node)
    outputs: list[Any]
    if arrays:
        outputs = results
    elif recording:
        outputs = [Variable._of(v, data) for v, data in zip(values, results, strict=True)]
    else:
        outputs = []
        for data in results:
            value = Value(data.shape)
            value._data = data
            outputs.append(Variable._of(value))
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _mark_volatile(function: Function, sources: Sequence[Value | None]) -> None:
    """Note which storages this function changes as an effect: gradients keep copies of those."""
    for name in function.declaration.updates:
        value = sources[function.declaration.inputs.index(name)]
        if value is not None:
            if value.parent is not None:
                raise GraphError(
                    f"[{function.name}] {name} is the result of {value.parent.name}; what the "
                    "function updates has to be a leaf, for example a parameter"
                )
            value.data._storage.volatile = True


def _input_name(function: Function, index: int) -> str:
    declaration = function.declaration
    if declaration.variadic:
        return f"{declaration.inputs[0]}[{index}]"
    return declaration.inputs[index] if index < len(declaration.inputs) else str(index)


Function.__call__ = call  # type: ignore[method-assign, assignment]

F = TypeVar("F", bound=Callable[..., Any])


def function_api(public: F) -> F:
    """Give a public function NNabla's arguments `n_outputs` (ignored) and `outputs`.

    `outputs` are Variables or NdArrays that take the results.
    """

    @functools.wraps(public)
    def wrapped(*args: Any, n_outputs: int = -1, outputs: Any = None, **kwargs: Any) -> Any:
        result = public(*args, **kwargs)
        return result if outputs is None else into(public.__name__, result, outputs)

    signature = inspect.signature(public)
    extra = [
        inspect.Parameter("n_outputs", inspect.Parameter.KEYWORD_ONLY, default=-1),
        inspect.Parameter("outputs", inspect.Parameter.KEYWORD_ONLY, default=None),
    ]
    parameters = list(signature.parameters.values())
    variable = [p for p in parameters if p.kind is p.VAR_KEYWORD]
    fixed = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    wrapped.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*fixed, *extra, *variable]
    )
    return wrapped  # type: ignore[return-value]


def into(name: str, result: Any, outputs: Any) -> Any:
    """The results of a call, put into the Variables or NdArrays that the caller gave."""
    results = result if isinstance(result, tuple) else (result,)
    targets: list[Any] = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
    if len(results) != len(targets):
        raise ArgumentError(
            f"[{name}] outputs has {len(targets)} arrays but the function has {len(results)}"
        )
    for i, (source, target) in enumerate(zip(results, targets, strict=True)):
        data: NdArray = target.data if isinstance(target, Variable) else target
        if isinstance(source, Variable):
            # The result is computed into the memory of the given Variable or array.
            if source._data is not None:
                data.copy_from(source.data)
            source.data = data
            targets[i] = source
        else:
            targets[i] = data.copy_from(source)
    return tuple(targets) if isinstance(result, tuple) else targets[0]
