"""Slabs: where parameters and their gradients lie, one after the other, for as long as they live.

A parameter is placed when it is created, its gradient at the same offset of a second array. The
address never changes, so an array that a user holds stays live and a layer that first appears late
moves nothing. Solvers and collectives then work on a few long runs instead of many small arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from .backend import Backend
from .context import World
from .ndarray import NdArray
from .storage import Storage

# Memory is only used where it is written to, so a block may be much larger than a small network.
_BLOCK_BYTES = 64 * 1024 * 1024
_ALIGNMENT = 64  # bytes; a cache line, and what vector loads like


class Block:
    """A piece of a slab: parameters and gradients at equal offsets, and what is added to them."""

    def __init__(self, backend: Backend, size: int, dtype: np.dtype) -> None:
        self.backend = backend
        self.data = backend.zeros(size, dtype)
        self.grad = backend.zeros(size, dtype)
        self.used = 0

    def aligned(self, index: int) -> int:
        """The next offset at which a parameter may begin. The gap stays zero and is harmless."""
        step = _ALIGNMENT // self.data.itemsize
        return -(-index // step) * step


class Slot:
    """The place of one parameter, or of its gradient, in a block; and the parameter's name."""

    __slots__ = ("array", "block", "memory", "name", "start", "stop")

    def __init__(
        self, name: str, block: Block, memory: Any, start: int, shape: tuple[int, ...]
    ) -> None:
        self.name = name
        self.block = block
        self.memory = memory  # the block's data or its grad
        self.start = start
        self.stop = start + math.prod(shape)
        self.array = memory[start : self.stop].reshape(shape)


def place(
    world: World, backend: Backend, name: str, shape: tuple[int, ...], trainable: bool
) -> tuple[NdArray, NdArray]:
    """Data and gradient of a new parameter."""
    dtype = backend.parameter_dtype
    blocks = world.slabs.setdefault((backend.name, dtype, trainable), [])
    size = math.prod(shape)
    if not blocks or blocks[-1].aligned(blocks[-1].used) + size > len(blocks[-1].data):
        blocks.append(Block(backend, max(size, _BLOCK_BYTES // dtype.itemsize), dtype))
    block: Block = blocks[-1]
    start = block.aligned(block.used)
    block.used = start + size
    data = Storage(shape, dtype, 0.0)
    data.home = Slot(name, block, block.data, start, shape)
    data.array = data.home.array
    grad = Storage(shape, dtype, 0.0)
    grad.home = Slot(name, block, block.grad, start, shape)
    grad.zeroing = True
    return NdArray._of(data, shape), NdArray._of(grad, shape)


class Run(NamedTuple):
    """Neighbouring parameters as one flat range of a block, or a parameter on its own."""

    members: tuple[int, ...]  # positions in the list the runs were made of
    block: Block | None
    start: int
    stop: int
    data: Any
    grad: Any


def runs(parameters: Iterable[tuple[int, NdArray, NdArray]]) -> list[Run]:
    """Group (position, data, gradient) of parameters into as few runs as possible.

    The arrays' memory must be there. A parameter whose memory was replaced is a run of its own.
    """
    placed: list[tuple[int, int, int, int, Block]] = []
    found: list[Run] = []
    for position, data, grad in parameters:
        home = attached(data)
        grad_home = attached(grad)
        if home is None or grad_home is None or home.block is not grad_home.block:
            found.append(Run((position,), None, 0, data.size, _flat(data), _flat(grad)))
        else:
            placed.append((id(home.block), home.start, home.stop, position, home.block))
    placed.sort(key=lambda item: item[:2])
    i = 0
    while i < len(placed):
        _, start, stop, _, block = placed[i]
        members = [placed[i][3]]
        i += 1
        while i < len(placed) and placed[i][4] is block and placed[i][1] == block.aligned(stop):
            stop = placed[i][2]
            members.append(placed[i][3])
            i += 1
        data_range, grad_range = block.data[start:stop], block.grad[start:stop]
        found.append(Run(tuple(members), block, start, stop, data_range, grad_range))
    return found


def attached(array: NdArray) -> Slot | None:
    """The slot that the whole of `array` lies in; None if its memory is elsewhere."""
    storage = array._storage
    home = storage.home
    return home if home is not None and storage.array is home.array and array._whole() else None


def _flat(array: NdArray) -> Any:
    return array._view(array._storage.array).reshape(-1)
