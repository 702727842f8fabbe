"""Random numbers on a GPU: the Philox of distnn/random.py, with the same bits as on the CPU."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import cupy
import numpy as np

from ..random import Draw
from .kernels import THREADS, blocks_for, kernel

# Words that one step of the generator yields: four of 64 bits, the lower half of each first.
WORDS = 8

# Philox4x64 with ten rounds, for kernels: the words of step `step` (from 1 on) of a draw.
PHILOX = """
__device__ void philox(unsigned long long seed, unsigned long long worker, unsigned long long draw,
                       unsigned long long step, unsigned int* words) {
  unsigned long long a = step, b = draw, c = 0, d = 0;
  for (int round = 0; round < 10; ++round) {
    unsigned long long high_a = __umul64hi(0xD2E7470EE14C6C93ULL, a);
    unsigned long long high_c = __umul64hi(0xCA5A826395121157ULL, c);
    unsigned long long low_a = 0xD2E7470EE14C6C93ULL * a, low_c = 0xCA5A826395121157ULL * c;
    a = high_c ^ b ^ seed;
    b = low_c;
    c = high_a ^ d ^ worker;
    d = low_a;
    seed += 0x9E3779B97F4A7C15ULL;
    worker += 0xBB67AE8584CAA73BULL;
  }
  unsigned long long block[4] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) {
    words[2 * i] = (unsigned int)block[i];
    words[2 * i + 1] = (unsigned int)(block[i] >> 32);
  }
}
"""

# How kernels are given a draw: by value, or where captured graphs read it, by an address.
BY_VALUE = {
    "draw_parameters": "unsigned long long seed, unsigned long long worker, "
    "unsigned long long draw",
    "draw_values": "",
}
IN_MEMORY = {
    "draw_parameters": "const unsigned long long* key",
    "draw_values": "const unsigned long long seed = key[0], worker = key[1], draw = key[2];",
}

_WORDS = """{philox}
struct alignas(16) Step {{ unsigned int words[{words}]; }};

extern "C" __global__ void words(Step* steps, long long count, {draw_parameters}) {{
  {draw_values}
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < count;
       i += (long long)gridDim.x * blockDim.x) {{
    Step step;
    philox(seed, worker, draw, i + 1, step.words);
    steps[i] = step;
  }}
}}
"""


class DeviceDraw(Draw):
    """A draw whose numbers are arrays of the current device."""

    passing = BY_VALUE

    def words(self, count: int) -> Any:
        """`count` uniform uint32."""
        steps = -(-count // WORDS)
        words = cupy.empty(steps * WORDS, np.uint32)
        if steps:
            kernel("words", _source(self.passing is IN_MEMORY))(
                blocks_for(steps), THREADS, words, np.int64(steps), *self.numbers()
            )
        return words[:count]

    def numbers(self) -> tuple[Any, ...]:
        """Seed, worker and draw, as arguments of a kernel."""
        return np.uint64(self.seed), np.uint64(self.worker), np.uint64(self.draw)


class DrawInMemory(DeviceDraw):
    """A draw that is read from device memory: another one at each launch of a captured graph."""

    passing = IN_MEMORY
    key: Any  # three words

    @classmethod
    def at(cls, key: Any) -> DrawInMemory:
        draw = cls(None, None, None)  # type: ignore[arg-type]  # nobody on the host knows them
        draw.key = key
        return draw

    def numbers(self) -> tuple[Any, ...]:
        return (self.key,)


@functools.cache
def _source(in_memory: bool) -> str:
    passing = IN_MEMORY if in_memory else BY_VALUE
    return _WORDS.format(philox=PHILOX, words=WORDS, **passing)


def sources() -> Iterator[tuple[str, str]]:
    """(name, CUDA source) of every kernel that can be made here."""
    for in_memory in (False, True):
        yield "words", _source(in_memory)
