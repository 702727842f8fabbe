"""Hooks: callables that see every function, or every solver, before and after it works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_function_pre: dict[Any, Callable] = {}
_function_post: dict[Any, Callable] = {}
_solver_pre: dict[Any, Callable] = {}
_solver_post: dict[Any, Callable] = {}
NO_HOOKS: tuple[tuple[Callable, ...], tuple[Callable, ...]] = ((), ())


def set_function_pre_hook(key: Any, function_pre_hook: Callable) -> None:
    """Call `function_pre_hook(function)` before each function of a forward or backward."""
    _function_pre[key] = function_pre_hook


def set_function_post_hook(key: Any, function_post_hook: Callable) -> None:
    """Call `function_post_hook(function)` after each function of a forward or backward."""
    _function_post[key] = function_post_hook


def unset_function_pre_hook(key: Any) -> None:
    """Forget the hook that was set under `key`."""
    _function_pre.pop(key, None)


def unset_function_post_hook(key: Any) -> None:
    """Forget the hook that was set under `key`."""
    _function_post.pop(key, None)


def set_solver_pre_hook(key: Any, solver_pre_hook: Callable) -> None:
    """Call `solver_pre_hook()` before each `update`, `weight_decay`, ... of a solver."""
    _solver_pre[key] = solver_pre_hook


def set_solver_post_hook(key: Any, solver_post_hook: Callable) -> None:
    """Call `solver_post_hook()` after each `update`, `weight_decay`, ... of a solver."""
    _solver_post[key] = solver_post_hook


def unset_solver_pre_hook(key: Any) -> None:
    """Forget the hook that was set under `key`."""
    _solver_pre.pop(key, None)


def unset_solver_post_hook(key: Any) -> None:
    """Forget the hook that was set under `key`."""
    _solver_post.pop(key, None)


def function_hooks(
    own: tuple[Callable | None, Callable | None],
) -> tuple[tuple[Callable, ...], tuple[Callable, ...]]:
    """All hooks before and after a function, those of this call last."""
    if own == (None, None) and not _function_pre and not _function_post:
        return NO_HOOKS
    pre, post = own
    return (
        (*_function_pre.values(), *((pre,) if pre else ())),
        (*_function_post.values(), *((post,) if post else ())),
    )


def solver_hooks(
    own: tuple[Callable | None, Callable | None],
) -> tuple[tuple[Callable, ...], tuple[Callable, ...]]:
    """All hooks before and after a solver's work, those of this call last."""
    if own == (None, None) and not _solver_pre and not _solver_post:
        return NO_HOOKS
    pre, post = own
    return (
        (*_solver_pre.values(), *((pre,) if pre else ())),
        (*_solver_post.values(), *((post,) if post else ())),
    )
