"""The decorator that turns a function with parameters into a parametric function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from ..parameter import enter_scope, leave_scope


def parametric_function_api(
    scope_name: str | None = None, param_desc: Sequence[tuple[str, str, str, bool]] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function that creates parameters, to be kept in a scope of their own.

    The function gets a last argument `name`: its parameters live in `[name/]scope_name/`.

    Args:
        scope_name: of the parameters; the function's name by default.
        param_desc: (name, description, shape, need_grad) of each parameter, for the docs.

    >>> import distnn as nn, distnn.functions as F
    >>> from distnn.parameter import get_parameter_or_create
    >>> @parametric_function_api("scale", [("s", "Scale", "(1,)", True)])
    ... def scale(x, fix_parameters=False):
    ...     s = get_parameter_or_create("s", (1,), None, True, not fix_parameters)
    ...     return x * s
    >>> y = scale(nn.Variable((4,)), name="first")
    >>> "first/scale/s" in nn.get_parameters()
    True
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)
        limit = len(signature.parameters)
        scope = function.__name__ if scope_name is None else scope_name

        @functools.wraps(function)
        def parametric(*args: Any, **kwargs: Any) -> Any:
            name = kwargs.pop("name", None)
            if len(args) > limit:
                *args, name = args  # type: ignore[assignment]
            outside = enter_scope(f"{name}/{scope}" if name else scope)
            try:
                return function(*args, **kwargs)
            finally:
                leave_scope(outside)

        last = inspect.Parameter("name", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)
        parametric.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*signature.parameters.values(), last]
        )
        parametric.__doc__ = _with_parameters(function.__doc__, scope, param_desc)
        return parametric

    return decorate


def _with_parameters(
    doc: str | None, scope: str, param_desc: Sequence[tuple[str, str, str, bool]] | None
) -> str:
    lines = [inspect.cleandoc(doc or "")]
    if param_desc:
        lines += ["", f"Parameters, in the scope `[name/]{scope}`:"]
        lines += [
            f"    {name} {shape}: {text}{'' if need_grad else ' (not trained)'}"
            for name, text, shape, need_grad in param_desc
        ]
    return "\n".join(lines)
