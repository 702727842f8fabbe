"""distnn beside PyTorch on one GPU: training iterations, single kernels, the full seed experiment.

Each row runs in a process of its own, in which PyTorch (eager, with its fused optimizers, its own
choice of algorithms and, for images, channels_last) and distnn (static and dynamic) alternate. Loss
and first gradients are compared with float64 before anything is timed. Several steps run between
two synchronizations; figures are medians over rounds. A row that fails says why, and the others go
on. Prints a table, and at the end one JSON line. Needs PyTorch.

    python scripts/bench_gpu.py --output gpu.jsonl
    python scripts/bench_gpu.py --rows seed-tf32,kernels --quick
    python scripts/bench_gpu.py --device cpu        # tiny, to try the script itself
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import networks
import numpy as np
from jobs import ROOT, gpu, machine, rounded

TRAINING = {
    "seed-float32": ("seed", "float32"),
    "seed-tf32": ("seed", "tf32"),
    "seed-half": ("seed", "half"),
    "seed-bf16": ("seed", "bf16"),
    "resnet50-tf32": ("resnet50", "tf32"),
    "resnet50-half": ("resnet50", "half"),
    "resnet50-bf16": ("resnet50", "bf16"),
    "transformer-tf32": ("transformer", "tf32"),
    "transformer-half": ("transformer", "half"),
    "transformer-bf16": ("transformer", "bf16"),
}
ROWS = [*TRAINING, "kernels", "experiment"]
# Only if asked for.
EXTRA = ("seed-half", "seed-bf16", "resnet50-bf16", "transformer-half", "transformer-bf16")
WARM_UP = 8  # steps: kernels are compiled, algorithms chosen, memory taken, graphs captured

# What a full run on a GPU is to reach.
SLOWEST_TO_PYTORCH, LEAST_OF_COPY = 1.2, 0.8
EXPERIMENT_SECONDS, EXPERIMENT_LOSS = 3.0, 2e-3


class Size(NamedTuple):
    """How large things are, and how long they are timed."""

    rounds: int
    seconds: float  # of one contestant in one round
    networks: dict[str, Callable[[], networks.Network]]
    experiment: list[str]  # options of examples/static_vs_dynamic.py
    kernels: tuple[int, tuple[int, ...], tuple[int, int], tuple[int, int]]


FULL = Size(
    7, 0.3,
    {"seed": networks.seed, "resnet50": networks.resnet50, "transformer": networks.transformer},
    [],
    (1 << 30, (128, 256, 56, 56), (8192, 32_000), (160, 160_000)),
)  # fmt: skip
QUICK = FULL._replace(
    rounds=3,
    seconds=0.1,
    networks=FULL.networks | {"resnet50": lambda: networks.resnet50(batch=32)},
    experiment=["--epochs", "5"],
)
TINY = Size(
    2, 0.0,
    {
        "seed": lambda: networks.seed(2, 32, 0.1),
        "resnet50": lambda: networks.resnet50(4, 32, (1, 1, 1, 1), 8),
        "transformer": lambda: networks.transformer(1, 16, 2, 2, 8, 50),
    },
    ["--epochs", "2", "--depth", "1", "--width-scale", "0.1", "--batch-size", "512"],
    (1 << 16, (4, 8, 6, 6), (16, 100), (4, 1000)),
)  # fmt: skip


# -- what is computed from measurements -----------------------------------------------------------


def alternate(
    steps: dict[str, Callable[[], Any]],
    synchronize: Callable[[], None],
    rounds: int,
    seconds: float,
) -> dict[str, list[float]]:
    """Seconds of a step of each contestant, by round; they take turns in each round."""

    def timed(step: Callable[[], Any], count: int) -> float:
        synchronize()
        begin = time.perf_counter()
        for _ in range(count):
            step()
        synchronize()
        return (time.perf_counter() - begin) / count

    counts = {}
    for name, step in steps.items():
        timed(step, WARM_UP)
        counts[name] = min(max(math.ceil(seconds / timed(step, 1)), 1), 1000)
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            found[name].append(timed(step, counts[name]))
    return found


def gates(rows: dict[str, Any]) -> dict[str, bool]:
    """What a full run on a GPU reached, of what it is to reach.

    >>> gates({"seed-tf32": {"static_over_torch": 1.1}, "kernels": {"error": "no memory"}})
    {'seed-tf32': True}
    """
    found = {}
    for name, row in rows.items():
        if "static_over_torch" in row:
            found[name] = row["static_over_torch"] <= SLOWEST_TO_PYTORCH
        for case, values in row.get("cases", {}).items():
            if case != "copy":
                found[case] = values["of_copy"] >= LEAST_OF_COPY
        if "static_seconds" in row:
            found["experiment, seconds"] = row["static_seconds"] < EXPERIMENT_SECONDS
            found["experiment, loss"] = (
                max(row["static_loss"], row["dynamic_loss"]) < EXPERIMENT_LOSS
            )
    return found


def table(rows: dict[str, Any]) -> str:
    """The rows as text."""
    training = {n: r for n, r in rows.items() if "static_ms" in r}
    cases = rows.get("kernels", {}).get("cases", {})
    lines = []
    if training:
        head = ["PyTorch", "static", "dynamic", "static/PyTorch", "dynamic/static", "same bits"]
        lines.append(_line("iteration, ms", [*head, "gradient error", "PyTorch's"]))
        for name, row in training.items():
            cells = [f"{row[f'{k}_ms']:.2f}" for k in ("torch", "static", "dynamic")]
            cells += [f"{row['static_over_torch']:.2f}", f"{row['dynamic_over_static']:.2f}"]
            cells += ["yes" if row["same_bits"] else "NO"]
            cells += [f"{row['gradient_error']:.1e}", f"{row['gradient_error_torch']:.1e}"]
            lines.append(_line(name, cells))
            if "static_without_graphs_ms" in row:
                cells = [f"{row[f'{k}_without_graphs_ms']:.2f}" for k in ("static", "dynamic")]
                cells = ["", *cells, "", "", "yes" if row["same_bits_without_graphs"] else "NO"]
                lines.append(_line(f"  without its {row['graphs']} CUDA graphs", cells))
    if cases:
        head = ["PyTorch", "distnn", "GB/s", "of copy", "PyTorch's"]
        lines += ["", _line("kernel, ms", head)]
        for name, case in cases.items():
            cells = [f"{case['torch_ms']:.3f}", f"{case['ms']:.3f}", f"{case['gb_per_s']:.0f}"]
            cells += [f"{case['of_copy']:.0%}", f"{case['torch_of_copy']:.0%}"]
            lines.append(_line(name, cells))
    if "static_seconds" in (row := rows.get("experiment", {})):
        lines += ["", f"full seed experiment, {row['iterations']} iterations:"]
        lines += [
            f"  {mode}: {row[f'{mode}_seconds']:.2f} s, median of the last epochs' mean losses "
            f"{row[f'{mode}_loss']:.2g}"
            for mode in ("static", "dynamic")
        ]
        lines.append(f"  losses of both are {'' if row['same_bits'] else 'NOT '}bit-identical")
    failed = [f"{name}: {row['error']}" for name, row in rows.items() if "error" in row]
    return "\n".join([*lines, *(["", "failed:", *failed] if failed else [])])


def _line(name: str, cells: list[str]) -> str:
    return "".join([f"{name:<52}", *(f"{cell:>15}" for cell in cells)])


# -- rows, each in a process of its own -----------------------------------------------------------


class Device:
    """Where a row runs, for distnn and for PyTorch."""

    def __init__(self, name: str) -> None:
        if name == "emulated":
            sys.path.insert(0, str(ROOT / "tests"))
            import gpu_emulator

            gpu_emulator.install()
        from distnn.ext_utils import import_extension_module

        self.extension = "cpu" if name == "cpu" else "cudnn"
        self.torch = "cuda" if name == "gpu" else "cpu"
        self._module = import_extension_module(self.extension)

    def synchronize(self) -> None:
        """Wait for all work on the device, whoever gave it."""
        self._module.synchronize()
        if self.torch == "cuda":
            import torch

            torch.cuda.synchronize()


def training(name: str, device: Device, size: Size) -> dict[str, Any]:
    """One training iteration of a network."""
    import torch
    from trainers import Ours, Torch, compared

    kind, precision = TRAINING[name]
    if device.torch == "cpu" and precision == "tf32":
        precision = "float32"  # PyTorch has no TF32 there to compare with
    if device.extension == "cpu" and precision == "bf16":
        precision = "float32"  # distnn has bfloat16 there with compiled kernels only
    network = size.networks[kind]()
    static, dynamic = (Ours(network, device.extension, precision, d) for d in (False, True))
    values, trained = static.parameters(), static.parameters(trained=True)
    exact = Torch(network, values, trained, device.torch, "double")
    peer = Torch(network, values, trained, device.torch, precision)  # the last: it sets TF32
    report: dict[str, Any] = compared(static, peer, exact, precision)
    loss, gradients = static.gradients()
    other_loss, others = dynamic.gradients()
    report["same_bits"] = loss == other_loss and all(
        np.array_equal(gradients[k], g) for k, g in others.items()
    )
    del exact, gradients, others
    if device.torch == "cuda":
        torch.cuda.empty_cache()
    steps = {"torch": peer.step, "static": static.step, "dynamic": dynamic.step}
    found = alternate(steps, device.synchronize, size.rounds, size.seconds)
    for contestant, seconds in found.items():
        report[f"{contestant}_ms"] = 1e3 * median(seconds)
        report[f"{contestant}_ms_min"] = 1e3 * min(seconds)
    report["static_over_torch"] = report["static_ms"] / report["torch_ms"]
    report["dynamic_over_static"] = report["dynamic_ms"] / report["static_ms"]
    if device.extension != "cpu":
        report |= graphs(static, dynamic, device, size)
    return report


def graphs(static: Any, dynamic: Any, device: Device, size: Size) -> dict[str, Any]:
    """What was captured as CUDA graphs, whether it has the bits of runs without, and their time."""
    import distnn as nn

    contestants = {"static": static, "dynamic": dynamic}
    stats = nn.profiler.plan_stats()
    lines = nn.profiler.capture_report().splitlines()
    report: dict[str, Any] = {
        "graphs": stats["captured_graphs"],
        "graphs_mib": stats["captured_bytes"] / 2**20,
        "not_captured": [line for line in lines if "graph" not in line],
    }
    captured = {name: each.gradients() for name, each in contestants.items()}
    nn.set_capture(False)
    try:
        same = []
        for name, each in contestants.items():
            (loss, gradients), (other_loss, others) = captured[name], each.gradients()
            same.append(loss == other_loss)
            same += [np.array_equal(gradients[k], g) for k, g in others.items()]
        report["same_bits_without_graphs"] = all(same)
        steps = {name: each.step for name, each in contestants.items()}
        found = alternate(steps, device.synchronize, size.rounds, size.seconds)
    finally:
        nn.set_capture(True)
    return report | {
        f"{name}_without_graphs_ms": 1e3 * median(seconds) for name, seconds in found.items()
    }


def kernels(device: Device, size: Size) -> dict[str, Any]:
    """Single functions, as shares of the bandwidth of a copy."""
    import kernel_cases as cases
    import torch

    import distnn as nn
    from distnn.ext_utils import get_extension_context

    nn.set_default_context(get_extension_context(device.extension))
    nbytes, images, scores, parameters = size.kernels
    makers: dict[str, Callable[[], list[cases.Case]]] = {
        "batch normalization": lambda: cases.batch_normalization_cases(device.torch, images, False),
        "channels last": lambda: cases.batch_normalization_cases(device.torch, images, True),
        "cross entropy": lambda: cases.cross_entropy_cases(device.torch, *scores),
        "Adam": lambda: [cases.adam_case(device.torch, *parameters)],
    }
    found = {"copy": timed_case(cases.copy_case(device.torch, nbytes), device, size)}
    errors = []
    for name, make in makers.items():
        try:
            for case in make():
                found[case.name] = timed_case(case, device, size)
        except Exception as error:
            traceback.print_exc()
            errors.append(f"{name}: {type(error).__name__}: {error}")
        if device.torch == "cuda":
            torch.cuda.empty_cache()
    copied = found["copy"]["torch_gb_per_s"]
    for values in found.values():
        values["of_copy"] = values["gb_per_s"] / copied
        values["torch_of_copy"] = values["torch_gb_per_s"] / copied
    return {"cases": found} | ({"error": "; ".join(errors)} if errors else {})


def timed_case(case: Any, device: Device, size: Size) -> dict[str, float]:
    """Check that both compute the same, then time them."""
    from kernel_cases import check

    for _ in range(WARM_UP):
        case.ours()
        case.peer()
    check(case)
    steps = {"ours": case.ours, "torch": case.peer}
    found = alternate(steps, device.synchronize, size.rounds, size.seconds / 3)
    ours, torchs = median(found["ours"]), median(found["torch"])
    return {
        "ms": 1e3 * ours,
        "torch_ms": 1e3 * torchs,
        "gb_per_s": case.nbytes / ours / 1e9,
        "torch_gb_per_s": case.nbytes / torchs / 1e9,
    }


def experiment(device: Device, size: Size) -> dict[str, Any]:
    """examples/static_vs_dynamic.py in TF32, after an epoch in which kernels are compiled."""
    sys.path.insert(0, str(ROOT / "examples"))
    import static_vs_dynamic

    import distnn as nn
    from distnn.ext_utils import get_extension_context

    nn.set_default_context(get_extension_context(device.extension, precision="tf32"))
    options = static_vs_dynamic.parse(size.experiment)
    first = static_vs_dynamic.parse([*size.experiment, "--epochs", "1"])
    report: dict[str, Any] = {}
    losses = []
    with contextlib.redirect_stdout(sys.stderr):
        for mode in ("static", "dynamic"):
            static_vs_dynamic.train(mode, first)
            curve = static_vs_dynamic.train(mode, options)
            report[f"{mode}_seconds"] = curve.seconds
            report[f"{mode}_loss"] = median(curve.means()[-5:])
            report["iterations"] = curve.iterations()
            losses.append(curve.losses)
    return report | {"same_bits": losses[0] == losses[1]}


def work(name: str, device: str, size: Size) -> dict[str, Any]:
    """Run a row here; what it measured, or why it failed."""
    try:
        where = Device(device)
        if name in TRAINING:
            return training(name, where, size)
        return {"kernels": kernels, "experiment": experiment}[name](where, size)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


# -- all rows -------------------------------------------------------------------------------------


def run(name: str, arguments: list[str], timeout: float) -> dict[str, Any]:
    """Run a row in a process of its own: what happens to the device there ends with it."""
    if timeout <= 0:
        return {"error": "not run: no time was left"}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, *arguments, "--rows", name, "--worker", str(result)]
        try:
            status = subprocess.run(command, stdout=sys.stderr, timeout=timeout).returncode
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {timeout:.0f} s"}
        if not result.exists():
            return {"error": f"its process ended with status {status}"}
        return json.loads(result.read_text())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ",".join(row for row in ROWS if row not in EXTRA)
    parser.add_argument("--rows", default=default, help=f"of {','.join(ROWS)}; {default}")
    parser.add_argument("--quick", action="store_true", help="shorter and smaller")
    parser.add_argument("--device", choices=["gpu", "cpu", "emulated"], default="gpu")
    parser.add_argument("--row-seconds", type=float, default=180.0, help="at most for a row")
    parser.add_argument("--seconds", type=float, default=math.inf, help="at most for all rows")
    parser.add_argument("--output", metavar="FILE", help="append the JSON line here, too")
    parser.add_argument("--worker", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    rows = options.rows.split(",")
    if unknown := [row for row in rows if row not in ROWS]:
        parser.error(f"--rows {unknown[0]!r} is none of {', '.join(ROWS)}")
    if options.worker:
        size = TINY if options.device != "gpu" else QUICK if options.quick else FULL
        (name,) = rows
        report = work(name, options.device, size)
        Path(options.worker).write_text(json.dumps(report))
        return 0
    passed = ["--device", options.device, *(["--quick"] if options.quick else [])]
    end = time.monotonic() + options.seconds
    found: dict[str, Any] = {}
    for name in rows:
        found[name] = run(name, passed, min(options.row_seconds, end - time.monotonic()))
        print(table({name: found[name]}), file=sys.stderr, flush=True)
    report = {"benchmark": "gpu", "device": options.device, "quick": options.quick}
    report |= machine() | gpu() | {"rows": found}
    if options.device == "gpu" and not options.quick:
        report["gates"] = gates(found)
    line = json.dumps(rounded(report))
    print(table(found) + "\n\n" + line)
    if options.output:
        with Path(options.output).open("a") as file:
            file.write(line + "\n")
    return int(any("error" in row for row in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
