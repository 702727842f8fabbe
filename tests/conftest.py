"""Every test begins with a World of its own: no parameters, seeds at their defaults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from distnn.context import World, set_auto_forward, world_scope


@pytest.fixture(autouse=True)
def world() -> Iterator[World]:
    with world_scope(World()) as fresh:
        yield fresh
        set_auto_forward(False)
