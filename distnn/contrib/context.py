"""`contrib.context.extension_context`, NNabla's old name of `get_extension_context`."""

from __future__ import annotations

from typing import Any

from ..context import Context
from ..ext_utils import get_extension_context


def extension_context(extension_name: str = "cpu", **kw: Any) -> Context:
    """The context of an extension; see ext_utils.get_extension_context.

    >>> extension_context("cpu").backend
    ['cpu:float']
    """
    return get_extension_context(extension_name, **kw)
