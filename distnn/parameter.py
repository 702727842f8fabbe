"""Parameters by scope: a tree of names, whose leaves are Variables with a place in a slab."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextvars import ContextVar, Token
from typing import Any

import numpy as np

from . import parameter_slab
from .context import current_backend, current_world
from .errors import ParameterError
from .initializer import BaseInitializer, ConstantInitializer
from .ndarray import check_shape
from .variable import Variable

Scope = OrderedDict[str, Any]

# The scope inside parameter_scope blocks, and its path, by which errors name parameters.
_scope: ContextVar[tuple[Scope, str] | None] = ContextVar("distnn_parameter_scope", default=None)


def get_current_parameter_scope() -> Scope:
    """The scope in which parameters are looked up and created now."""
    inside = _scope.get()
    return current_world().parameters if inside is None else inside[0]


def _current_scope() -> tuple[Scope, str]:
    """With its path."""
    return _scope.get() or (current_world().parameters, "")


class parameter_scope:  # used as a function
    """Look up and create parameters below `name` inside the block.

    Args:
        name: of the scope; "a/b" is two nested ones, "" the current one.
        scope: begin here instead of in the current scope.

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> with nn.parameter_scope("block"):
    ...     y = PF.affine(nn.Variable((2, 3)), 4)
    >>> sorted(nn.get_parameters())
    ['block/affine/W', 'block/affine/b']
    """

    def __init__(self, name: str, scope: Scope | None = None) -> None:
        self._name = name
        self._scope = scope
        self._tokens: list[Token] = []

    def __enter__(self) -> Scope:
        found = _below(self._name, self._scope)
        self._tokens.append(_scope.set(found))
        return found[0]

    def __exit__(self, *exception: object) -> None:
        _scope.reset(self._tokens.pop())


def enter_scope(name: str) -> Token:
    """As `parameter_scope(name)` without its object; returns what `leave_scope` takes."""
    return _scope.set(_below(name))


leave_scope = _scope.reset


def _below(name: str, scope: Scope | None = None) -> tuple[Scope, str]:
    """The scope `name` below `scope`, or the current one, made where there is none; its path."""
    current, path = _current_scope() if scope is None else (scope, "")
    for part in _parts(name):
        path += part + "/"
        found = current.get(part)
        if found is None:
            found = current[part] = OrderedDict()
        elif isinstance(found, Variable):
            raise ParameterError(
                f"[parameter_scope] {name!r}: {part!r} is a parameter of shape {found.shape}, not "
                "a scope; choose another name"
            )
        current = found
    return current, path


def _parts(name: str) -> tuple[str, ...]:
    if not isinstance(name, str):
        raise ParameterError(f"[parameter_scope] name is {name!r}; pass a str")
    return _split(name)


@functools.lru_cache(4096)
def _split(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.strip("/").split("/") if part)


def get_parameter(key: str) -> Variable | None:
    """The parameter `key` ("a/b/W") of the current scope; None if there is none."""
    found: Any = get_current_parameter_scope()
    for part in _parts(key):
        if not isinstance(found, OrderedDict):
            return None
        found = found.get(part)
    return found if isinstance(found, Variable) else None


def set_parameter(key: str, param: Variable) -> None:
    """Register `param` as the parameter `key` of the current scope."""
    if not isinstance(param, Variable):
        raise ParameterError(f"[set_parameter] {key!r} is {type(param).__name__}; pass a Variable")
    *scopes, name = _parts(key)
    with parameter_scope("/".join(scopes)) as scope:
        if isinstance(scope.get(name), OrderedDict):
            raise ParameterError(f"[set_parameter] {key!r} is a scope; choose another name")
        scope[name] = param
    param.name = param.name or key


def pop_parameter(key: str) -> Variable | None:
    """Remove the parameter `key` of the current scope and return it; None if there is none."""
    *scopes, name = _parts(key)
    scope: Any = get_current_parameter_scope()
    for part in scopes:
        scope = scope.get(part)
        if not isinstance(scope, OrderedDict):
            return None
    return scope.pop(name) if isinstance(scope.get(name), Variable) else None


def get_parameters(
    params: Scope | None = None, path: str = "", grad_only: bool = True
) -> OrderedDict[str, Variable]:
    """Parameters of the current scope and below, by name, in order of creation.

    Args:
        params: the scope to begin with instead.
        path: put before every name.
        grad_only: only those with need_grad.

    The Variables are the registered ones: writing to their data changes every graph that uses them.
    """
    scope = get_current_parameter_scope() if params is None else params
    found: OrderedDict[str, Variable] = OrderedDict()
    for name, item in scope.items():
        full = f"{path}/{name}" if path else name
        if isinstance(item, OrderedDict):
            found.update(get_parameters(item, full, grad_only))
        elif item.need_grad or not grad_only:
            found[full] = item
    return found


def clear_parameters() -> None:
    """Forget all parameters of the current scope and below.

    Graphs and solvers that use them keep their Variables.
    """
    scope = get_current_parameter_scope()
    scope.clear()
    world = current_world()
    if scope is world.parameters:
        world.slabs.clear()  # what still lives keeps its memory; new parameters begin a new slab


Initializer = BaseInitializer | np.ndarray | Callable[[Sequence[int]], Any] | None


def create_parameter(
    name: str, shape: Sequence[int], initializer: Initializer, need_grad: bool
) -> Variable:
    """A Variable with a place in the slab of parameters, and its first values."""
    dimensions = check_shape(name, shape)
    backend = current_backend()
    data, grad = parameter_slab.place(current_world(), backend, name, dimensions, need_grad)
    variable = Variable(dimensions, need_grad)
    variable._value._data = data
    variable._value._grad = grad
    variable.name = name
    if initializer is None:
        initializer = ConstantInitializer(0)
    values = np.asarray(initializer(dimensions) if callable(initializer) else initializer)
    if values.shape != dimensions:
        raise ParameterError(
            f"[get_parameter_or_create] the initializer of {name!r} gives shape {values.shape} but "
            f"the parameter has {dimensions}"
        )
    data.data = values.astype(backend.parameter_dtype)
    return variable


def get_parameter_or_create(
    name: str,
    shape: Sequence[int] | None = None,
    initializer: Initializer = None,
    need_grad: bool = True,
    as_need_grad: bool | None = None,
) -> Variable:
    """The parameter `name` of the current scope, created if there is none.

    Args:
        name: "a/b/W" is W in the scope a/b.
        shape: of a new parameter; an existing one must have it. None takes the initializer's, if
            that is an array.
        initializer: of a new parameter: an initializer, an array or a function of the shape;
            None is zeros.
        need_grad: of the registered parameter.
        as_need_grad: of the returned Variable, if it shall differ (`fix_parameters`).
    Returns: a leaf over the parameter's data and gradient.
    Raises: ParameterError if the existing parameter has another shape.

    >>> import distnn as nn
    >>> from distnn.parameter import get_parameter_or_create
    >>> get_parameter_or_create("w", (2, 3)).shape
    (2, 3)
    """
    *scopes, leaf = _parts(name)
    scope, path = _below("/".join(scopes)) if scopes else _current_scope()
    parameter = scope.get(leaf)
    if isinstance(parameter, Variable):
        value = parameter._value
        if shape is not None and value.shape != shape and value.shape != tuple(shape):
            raise ParameterError(
                f"[get_parameter_or_create] {name!r} exists with shape {parameter.shape} but "
                f"shape {tuple(shape)} is asked for; use another parameter_scope, or "
                "nn.clear_parameters()"
            )
        if value.need is not need_grad:
            parameter.need_grad = need_grad
    elif parameter is not None:
        raise ParameterError(f"[get_parameter_or_create] {name!r} is a scope, not a parameter")
    else:
        if shape is None:
            if not isinstance(initializer, np.ndarray):
                raise ParameterError(
                    f"[get_parameter_or_create] {name!r} does not exist and shape is None; "
                    "pass its shape"
                )
            shape = initializer.shape
        parameter = create_parameter(path + leaf, shape, initializer, need_grad)
        scope[leaf] = parameter
    return parameter.get_unlinked_variable(need_grad if as_need_grad is None else as_need_grad)
