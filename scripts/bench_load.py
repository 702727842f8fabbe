"""The seed network beside other work on the machine: how much slower it gets, and how much PyTorch.

Iterations of both in turns in one process, first alone, then while other processes keep the cores
busy. Prints one JSON line. Needs PyTorch: pip install torch==2.13.0

    python scripts/bench_load.py >> benchmarks/load.jsonl
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from bench_seed import Distnn, Torch, batch, timed
from jobs import machine, rounded

_BUSY = "x = 1.0\nwhile True:\n    x = x * 1.0000001 + 1e-9"


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Other processes that always have something to compute."""
    started = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def seconds(steps: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Median seconds of each, in turns."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            found[name].append(timed(step))
    return {name: median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--processes", type=int, default=2, help="that are busy")
    options = parser.parse_args()
    import torch

    import distnn as nn

    torch.set_num_threads(nn.get_num_threads())
    images, labels = batch()
    ours = Distnn(False, options.depth, images, labels)
    weights = {k: p.d.copy() for k, p in ours.parameters().items()}
    steps = {"ours": ours.step, "torch": Torch(weights, images, labels, False).step}
    seconds(steps, 2)  # compiles
    alone = seconds(steps, options.repeats)
    with busy(options.processes):
        beside = seconds(steps, options.repeats)
    report: dict[str, Any] = {"benchmark": "load", **machine(), "torch": torch.__version__}
    report |= {
        "depth": options.depth,
        "processes": options.processes,
        "threads": nn.get_num_threads(),
    }
    report |= {f"{name}_alone_seconds": value for name, value in alone.items()}
    report |= {f"{name}_beside_seconds": value for name, value in beside.items()}
    for name in steps:
        report[f"{name}_slow_down"] = beside[name] / alone[name]
    print(json.dumps(rounded(report)))


if __name__ == "__main__":
    main()
