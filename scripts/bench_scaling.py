"""Data-parallel training on 1, 2, 4, ... ranks: throughput, efficiency and where the time goes.

    python scripts/bench_scaling.py --ranks 1,2,4 --model mlp --mode weak --plot scaling.png

Weak scaling keeps the batch of a rank, strong scaling that of all ranks together. Ranks share the
cores of this machine, and each uses as many threads as the largest number of ranks that still has a
core for each leaves it. With more ranks than cores efficiency says nothing. --emulate-accelerator
MS replaces arithmetic by waiting: forward and backward of one rank take MS milliseconds in which
the core is mostly free (batches are of one example), and gradients have the size of the model's.
Plots need matplotlib.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from jobs import ROOT, cores, machine, rounded, run

PHASES = ("forward", "backward", "exposed", "update")  # a step is their sum, but for odds and ends


# -- what is computed from measurements ------------------------------------------------------------


def efficiency(seconds: dict[int, float], mode: str) -> dict[int, float]:
    """T(1) / T(P) at the same batch per rank, T(1) / (P T(P)) at the same global batch.

    Where 1 is not among the ranks, the smallest number stands for it.

    >>> efficiency({1: 1.0, 2: 1.25}, "weak"), efficiency({1: 1.0, 2: 0.625}, "strong")
    ({1: 1.0, 2: 0.8}, {1: 1.0, 2: 0.8})
    """
    base = min(seconds)
    if mode == "weak":
        return {p: seconds[base] / t for p, t in seconds.items()}
    return {p: base * seconds[base] / (p * t) for p, t in seconds.items()}


def threads(ranks: list[int], available: int) -> int:
    """Threads of a rank: the same in all runs, so that they differ in nothing but ranks.

    >>> threads([1, 2, 4], 8), threads([1, 2, 4], 3), threads([4], 2)
    (2, 1, 1)
    """
    fitting = [p for p in ranks if p <= available]
    return available // max(fitting) if fitting else 1


def table(rows: list[dict[str, Any]], available: int) -> str:
    """The runs as text; efficiency is left out where ranks share cores."""
    head = ["ranks", "step ms", "examples/s", "efficiency", *PHASES, "hidden"]
    lines = ["  ".join(f"{h:>10}" for h in head)]
    for row in rows:
        meaningful = row["ranks"] <= available
        cells = [
            str(row["ranks"]),
            f"{row['step_seconds'] * 1e3:.1f}",
            f"{row['throughput']:.0f}",
            f"{row['efficiency']:.2f}" if meaningful else "-",
            *(f"{row['shares'][phase]:.1%}" for phase in (*PHASES, "hidden")),
        ]
        lines.append("  ".join(f"{cell:>10}" for cell in cells))
    lines.append(
        "Shares are of a step. backward: without exposed, the exchange that it waited for; hidden: "
        "the exchange that ran meanwhile."
    )
    if any(row["ranks"] > available for row in rows):
        lines.append(
            f"Efficiency is not meaningful with more ranks than cores: this machine has {available}"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], available: int, title: str, path: str) -> None:
    """Throughput over ranks, with the ideal line; hollow where ranks share cores."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ranks = [row["ranks"] for row in rows]
    rates = [row["throughput"] for row in rows]
    figure, axes = pyplot.subplots(figsize=(5, 4))
    axes.plot(ranks, [rates[0] * p / ranks[0] for p in ranks], "--", color="gray", label="ideal")
    axes.plot(ranks, rates, "-", color="C0", label="measured")
    for p, rate in zip(ranks, rates, strict=True):
        face = "C0" if p <= available else "white"
        axes.plot([p], [rate], "o", mfc=face, mec="C0")
    if ranks[-1] > available:
        axes.plot([], [], "o", mfc="white", mec="C0", label="more ranks than cores")
    axes.set(
        xlabel="ranks", ylabel="examples per second", title=title, xticks=ranks, ylim=(0, None)
    )
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


# -- a run, on the ranks ---------------------------------------------------------------------------


def seed(batch: int, depth: int) -> Any:
    """Loss of the seed network on random images."""
    import distnn as nn
    import distnn.functions as F

    sys.path.insert(0, str(ROOT / "examples"))
    from static_vs_dynamic import cnn

    x, t = nn.Variable((batch, 1, 8, 8)), nn.Variable((batch, 1))
    x.d, t.d = examples(x.shape), np.arange(batch).reshape(-1, 1) % 10
    return F.mean(F.softmax_cross_entropy(cnn(x, depth, 1.0, lambda i: False), t))


def mlp(batch: int, depth: int) -> Any:
    """Loss of a perceptron of `depth` layers of 512: one megabyte of gradients each."""
    import distnn as nn
    import distnn.functions as F
    import distnn.parametric_functions as PF

    h, t = nn.Variable((batch, 512)), nn.Variable((batch, 1))
    h.d, t.d = examples(h.shape), np.arange(batch).reshape(-1, 1) % 10
    for k in range(depth):
        h = F.tanh(PF.affine(h, 512, name=str(k)))
    return F.mean(F.softmax_cross_entropy(PF.affine(h, 10), t))


def examples(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.RandomState(0).uniform(-1, 1, shape).astype(np.float32)


MODELS: dict[str, Callable[[int, int], Any]] = {"seed": seed, "mlp": mlp}


class Accelerator:
    """Hooks that let each function of a pass take its share of `seconds`, mostly asleep."""

    def __init__(self, loss: Any, seconds: float) -> None:
        functions: list[Any] = []
        loss.visit(functions.append)
        self._share = seconds / len(functions)
        self._until = 0.0

    def before(self, function: Any) -> None:
        self._until = time.perf_counter() + self._share

    def after(self, function: Any) -> None:
        time.sleep(max(0.0, self._until - time.perf_counter()))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of each phase; a step is over when the slowest rank is."""
    import distnn as nn
    import distnn.communicators as C
    import distnn.solvers as S

    comm = C.MultiProcessDataParallelCommunicator()
    comm.init()
    nn.set_num_threads(options.threads)
    share = 1 if options.mode == "weak" else comm.size
    batch = max(1, options.batch // share)
    emulated = options.emulate_accelerator
    loss = MODELS[options.model](1 if emulated else batch, options.depth)
    solver = S.Sgd(1e-3)
    solver.set_parameters(nn.get_parameters())
    gradients = [p.grad for p in nn.get_parameters().values()]
    callback = comm.all_reduce_callback(gradients, options.pack_size, division=True)
    hooks: list[dict[str, Any]] = [{}, {}]
    if emulated:
        for k, part in enumerate((1 / 3, 2 / 3)):  # forward, backward
            device = Accelerator(loss, part * emulated * 1e-3 / share)
            hooks[k] = {"function_pre_hook": device.before, "function_post_hook": device.after}
    found = []
    for k in range(options.steps + 2):
        comm.barrier()
        begin = time.perf_counter()
        loss.forward(clear_no_need_grad=True, **hooks[0])
        forward = time.perf_counter()
        solver.zero_grad()
        loss.backward(clear_buffer=True, communicator_callbacks=callback, **hooks[1])
        backward = time.perf_counter()
        solver.update()
        end = time.perf_counter()
        report = callback.report()
        row = [end - begin, forward - begin, backward - forward - report.exposed, report.exposed]
        row += [end - backward, max(0.0, report.communication - report.exposed)]
        longest = nn.NdArray.from_numpy_array(np.zeros(comm.size))
        longest.data[comm.rank] = row[0]
        comm.all_reduce(longest)
        if k >= 2:  # the first ones warm up
            found.append([*row, float(longest.data.max())])
    step, *phases, slowest = (median(values) for values in zip(*found, strict=True))
    comm.barrier()
    return {
        "ranks": comm.size,
        "rank": comm.rank,
        "batch_of_all_ranks": batch * comm.size,
        "step_seconds": slowest,
        "throughput": batch * comm.size / slowest,
        "shares": dict(zip((*PHASES, "hidden"), (p / step for p in phases), strict=True)),
        "parameters": sum(g.size for g in gradients),
        "buckets": len(callback.buckets),
    }


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", default="1,2,4", help="numbers of ranks, with commas between")
    parser.add_argument("--model", choices=list(MODELS), default="mlp")
    parser.add_argument("--mode", choices=["weak", "strong"], default="weak")
    parser.add_argument(
        "--batch", type=int, default=256, help="of a rank (weak) or of all (strong)"
    )
    parser.add_argument("--depth", type=int, default=16, help="layers")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pack-size", type=int, default=1 << 20, help="elements of a bucket")
    parser.add_argument("--emulate-accelerator", type=float, metavar="MS")
    parser.add_argument("--json", metavar="FILE", help="append the report to FILE as a line")
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument("--threads", type=int, help="of a rank")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parsed()
    if options.worker:
        row = measure(options)
        if row["rank"] == 0:
            Path(options.worker).write_text(json.dumps(row))
        return
    ranks = [int(p) for p in options.ranks.split(",")]
    if options.threads is None:
        options.threads = threads(ranks, cores())
    arguments = [*sys.argv[1:], "--threads", str(options.threads)]
    rows = [run(p, __file__, arguments) for p in ranks]
    found = efficiency({row["ranks"]: row["step_seconds"] for row in rows}, options.mode)
    for row in rows:
        row["efficiency"] = found[row["ranks"]]
        row["efficiency_is_meaningful"] = row["ranks"] <= cores()
    settings = {k: v for k, v in vars(options).items() if k not in ("json", "plot", "worker")}
    report = {"benchmark": "scaling", **machine(), **settings, "runs": rows}
    print(table(rows, cores()))
    if options.json:
        with open(options.json, "a") as file:
            file.write(json.dumps(rounded(report)) + "\n")
    if options.plot:
        title = f"{options.model}, {options.mode} scaling"
        if options.emulate_accelerator:
            title += f", accelerator of {options.emulate_accelerator:g} ms emulated"
        plot(rows, cores(), title, options.plot)


if __name__ == "__main__":
    main()
