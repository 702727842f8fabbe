"""Time of one exchange of gradients, plain and compressed, over links of several speeds.

Prints one JSON line: median milliseconds per `all_reduce` of all gradients, by link and method.
The ways alternate within each repetition, so that a busy machine disturbs all alike. Links are
emulated (`C.Throttled`): seconds are added to what the transport takes, "none" adds nothing. Inside
one machine compression is expected to lose: the conversions cost more than copying memory. It is
for slow links between machines. Two ranks are threads, or processes under distnn-launch:

    python scripts/bench_compression.py
    distnn-launch -n 2 scripts/bench_compression.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from typing import Any

import numpy as np

import distnn as nn
import distnn.communicators as C
from distnn.communicators import mpi
from distnn.context import current_world

LINKS = {  # bytes per second, seconds
    "none": None,
    "100 Gbit/s": (1.25e10, 1e-5),
    "10 Gbit/s": (1.25e9, 5e-5),
    "1 Gbit/s": (1.25e8, 5e-5),
    "100 Mbit/s": (1.25e7, 2e-4),
}


def shapes(elements: int) -> list[tuple[int, ...]]:
    """Square matrices and their biases, of about that many elements together."""
    side = 512
    return [shape for _ in range(max(1, elements // side**2)) for shape in ((side, side), (side,))]


def measure(
    link: tuple[float, float] | None, elements: int, repeats: int, transport: Any
) -> dict[str, float]:
    """Median milliseconds by method, on this rank."""
    current_world().transport = C.Throttled(transport, *link) if link else transport
    comm = C.MultiProcessDataParallelCommunicator()
    comm.init()
    rng = np.random.RandomState(comm.rank)
    values = [rng.standard_normal(shape).astype(np.float32) for shape in shapes(elements)]
    arrays = [nn.NdArray.from_numpy_array(v) for v in values]
    ways = {
        "plain": None,
        "float16": C.HalfCompression("float16"),
        "bfloat16": C.HalfCompression("bfloat16"),
        "PowerSGD rank 1": C.PowerSGD(rank=1),
        "PowerSGD rank 4": C.PowerSGD(rank=4),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(repeats + 1):
        for way, compression in ways.items():
            for array, v in zip(arrays, values, strict=True):
                array.data = v
            comm.barrier()
            begin = time.perf_counter()
            comm.all_reduce(arrays, division=True, compression=compression)
            if repeat:  # the first one is not counted
                seconds[way].append(time.perf_counter() - begin)
    comm.close()
    return {way: round(1e3 * statistics.median(found), 3) for way, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=4 << 20, help="of all gradients together")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    processes = mpi.started_ranks()[0] > 1
    base = mpi.connect() if processes else None
    found = {}
    for name, link in LINKS.items():
        arguments = (link, options.elements, options.repeats)
        if base is not None:
            found[name] = measure(*arguments, base)
        else:
            found[name] = C.run_threads(
                lambda a=arguments: measure(*a, current_world().transport), 2, timeout=600
            )[0]
    if base is None or base.rank == 0:
        line = {
            "benchmark": "compression",
            "ranks": base.size if base is not None else 2,
            "transport": "mpi" if processes else "threads",
            "elements": sum(int(np.prod(s)) for s in shapes(options.elements)),
            "repeats": options.repeats,
            "milliseconds": found,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "machine": platform.machine(),
        }
        print(json.dumps(line))


if __name__ == "__main__":
    main()
