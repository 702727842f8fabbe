"""What the reproducible mode costs: a training step in plain mode and over virtual workers.

Prints one JSON line. On each number of ranks a job of its own alternates between plain steps (a
rank's share of the batch at once, gradients summed by the callback while backward runs) and steps
over V virtual workers, on networks of equal structure; seconds are the slowest rank's, medians over
steps. `sum` is what follows the last part's backward: the exact sum, and waiting for other ranks.
`same_bits` says whether the parameters after these steps are equal for all numbers of ranks.

    python scripts/bench_reproducible.py --ranks 1 2 --workers 2 8 >> benchmarks/reproducible.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))
MARK = "bench_reproducible "


class Training:
    """A network in a World of its own, trained plainly (workers 0) or over virtual workers."""

    def __init__(self, workers: int, depth: int, images: np.ndarray, labels: np.ndarray) -> None:
        from static_vs_dynamic import cnn

        import distnn as nn
        import distnn.communicators as C
        import distnn.functions as F
        import distnn.solvers as S
        from distnn.context import World, world_scope

        self.workers, self.images, self.labels = workers, images, labels
        self.world, self.scope = World(), world_scope
        self.world.transport = None
        with world_scope(self.world):
            self.comm = C.MultiProcessDataParallelCommunicator()
            self.comm.init()
            rows = len(images) // (workers or self.comm.size)
            self.x = nn.Variable((rows, *images.shape[1:]))
            self.t = nn.Variable((rows, *labels.shape[1:]))
            y = cnn(self.x, depth, 1.0, lambda i: False)
            self.loss = F.mean(F.softmax_cross_entropy(y, self.t))
            self.solver = S.Adam(1e-3)
            self.solver.set_parameters(nn.get_parameters())
            self.gradients = [p.grad for p in nn.get_parameters().values()]
            self.callback = self.comm.all_reduce_callback(self.gradients, division=True)

    def step(self) -> dict[str, float]:
        """Train one step; returns seconds, of this rank."""
        with self.scope(self.world):
            self.comm.barrier()
            begin = time.perf_counter()
            self.solver.zero_grad()
            computed = self.reproducible() if self.workers else self.plain()
            summed = time.perf_counter()
            self.solver.update()
            return {"step": time.perf_counter() - begin, "sum": summed - computed}

    def plain(self) -> float:
        rows = len(self.images) // self.comm.size
        mine = slice(self.comm.rank * rows, (self.comm.rank + 1) * rows)
        self.x.d, self.t.d = self.images[mine], self.labels[mine]
        self.loss.forward(clear_no_need_grad=True)
        self.loss.backward(clear_buffer=True, communicator_callbacks=self.callback)
        return time.perf_counter()

    def reproducible(self) -> float:
        computed = 0.0
        x, t, batch = self.x, self.t, (self.images, self.labels)
        for x.d, t.d in self.comm.virtual_workers(self.workers, batch):
            self.loss.forward(clear_no_need_grad=True)
            self.loss.backward(clear_buffer=True)
            computed = time.perf_counter()
        return computed

    def slowest(self, seconds: dict[str, float]) -> dict[str, float]:
        """The largest of each over ranks."""
        mine = np.array(list(seconds.values()))
        self.comm._transport("slowest").all_reduce(mine, "max")
        return dict(zip(seconds, mine.tolist(), strict=True))

    def crc(self) -> int:
        """Of all parameters and statistics."""
        import distnn as nn

        with self.scope(self.world):
            crc = 0
            for p in nn.get_parameters(grad_only=False).values():
                crc = zlib.crc32(p.data.get_data("r").tobytes(), crc)
            return crc


def measure(options: argparse.Namespace) -> None:
    """Inside a job: measure, and print what rank 0 found."""
    from digits import load

    import distnn as nn

    images, labels = (a[: options.batch] for a in load())
    kinds = [Training(w, options.depth, images, labels) for w in (0, *options.workers)]
    found: list[list[dict[str, float]]] = [[] for _ in kinds]
    for i in range(options.warm_up + options.repeats):
        for kind, times in zip(kinds, found, strict=True):
            seconds = kind.slowest(kind.step())
            if i >= options.warm_up:
                times.append(seconds)
    report: dict[str, Any] = {"threads": nn.get_num_threads()}
    for kind, times in zip(kinds, found, strict=True):
        medians = {k: statistics.median(t[k] for t in times) for k in times[0]}
        if kind.workers:
            report[f"V={kind.workers}"] = {**medians, "crc": kind.crc()}
        else:
            report["plain"] = {"step": medians["step"]}
            report["parameters"] = sum(g.size for g in kind.gradients)
    if kinds[0].comm.rank == 0:
        print(MARK + json.dumps(report), flush=True)


def job(ranks: int, options: argparse.Namespace) -> dict[str, Any]:
    """The report of a job of so many ranks, with times over those of plain mode."""
    command = [sys.executable, "-m", "distnn.launcher", "-n", str(ranks), "--tee", "0"]
    mine = [__file__, "--measure", "--workers", *map(str, options.workers)]
    for name in ("depth", "batch", "repeats", "warm_up"):
        mine += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    out = subprocess.run([*command, *mine], stdout=subprocess.PIPE, text=True, check=True).stdout
    report = json.loads(out.split(MARK)[1].splitlines()[0])
    for workers in options.workers:
        found = report[f"V={workers}"]
        found["over_plain"] = found["step"] / report["plain"]["step"]
    return report


def machine() -> dict[str, Any]:
    import distnn as nn

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "benchmark": "reproducible",
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
        "cpu": model[0] if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "distnn": nn.__version__,
    }


def rounded(item: Any) -> Any:
    if isinstance(item, dict):
        return {k: rounded(v) for k, v in item.items()}
    return float(f"{item:.4g}") if isinstance(item, float) else item


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--depth", type=int, default=30, help="convolutions of the network")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options)
        return
    report = machine() | {
        name: getattr(options, name) for name in ("depth", "batch", "repeats", "warm_up")
    }
    jobs = {ranks: job(ranks, options) for ranks in options.ranks}
    for workers in options.workers:
        crcs = {found[f"V={workers}"].pop("crc") for found in jobs.values()}
        report[f"same_bits V={workers}"] = len(crcs) == 1
    report |= {f"ranks={ranks}": found for ranks, found in jobs.items()}
    print(json.dumps(rounded(report)))


if __name__ == "__main__":
    main()
