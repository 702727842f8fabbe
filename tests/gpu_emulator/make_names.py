"""Writes `names.txt`: the public names of the installed CuPy, with their parameters.

Run in tests/ as `python -m gpu_emulator.make_names`, with the real CuPy, no GPU. A line is
`name kind parameters`; kind is ufunc, function, method, attribute, other, or same (NumPy's own
object).
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import cupy
import numpy as np


def parameters(function: Any) -> list[str]:
    """Names of the parameters; `...` where CuPy does not tell them."""
    try:
        listed = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        # Compiled functions state their signature in the first line of their documentation.
        head = re.match(r"[\w.]+\((.*)\)", (function.__doc__ or "").strip().split("\n")[0])
        if head is None:
            return ["..."]
        names = []
        for part in re.sub(r"\([^()]*\)", "", head.group(1)).split(","):
            name = part.split("=")[0].split()[-1:]
            names += [n for n in name if n not in ("self", "/", "\\*", "*")]
        return names
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [stars.get(p.kind, "") + p.name for p in listed if p.name != "self"]


def line(name: str, value: Any, numpy: Any = None) -> str:
    if isinstance(value, cupy.ufunc):
        return f"{name} ufunc"
    if hasattr(numpy, name) and value is getattr(numpy, name):
        return f"{name} same"
    if callable(value) and not isinstance(value, type):
        kind = "method" if name.startswith("ndarray.") else "function"
        return f"{name} {kind} {' '.join(parameters(value))}".rstrip()
    return f"{name} {'attribute' if name.startswith('ndarray.') else 'other'}"


def public(module: Any) -> list[str]:
    return [n for n in dir(module) if not n.startswith("_") and n != "annotations"]


def text() -> str:
    lines = [line(n, getattr(cupy, n), np) for n in public(cupy)]
    for folder in ("linalg", "fft", "random"):
        module = getattr(cupy, folder)
        lines += [line(f"{folder}.{n}", getattr(module, n)) for n in public(module)]
    lines += [line(f"ndarray.{n}", getattr(cupy.ndarray, n)) for n in public(cupy.ndarray)]
    return f"# CuPy {cupy.__version__}\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "names.txt").write_text(text())
