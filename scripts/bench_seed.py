"""The seed network beside PyTorch: time and memory of an iteration, accuracy of the first one.

Prints one JSON line. PyTorch (eager) and distnn (static and dynamic) alternate in one process, each
on its own copy of the same network with equal initial weights and the same batch. Peak memory is
that of a process of its own for each, imports included. Needs PyTorch: pip install torch==2.13.0
DISTNN_CPU_KERNELS chooses between NumPy's kernels and compiled ones (docs/cpu.md).
With --precision bf16 distnn computes in bfloat16, and PyTorch by autocast.

    python scripts/bench_seed.py --repeats 5 >> benchmarks/seed.jsonl
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jobs import machine
from networks import seed_of_torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))
BATCH = 256


def batch() -> tuple[np.ndarray, np.ndarray]:
    from digits import load

    images, labels = load()
    return images[:BATCH], labels[:BATCH]


class Distnn:
    """One iteration of training with distnn."""

    def __init__(
        self,
        dynamic: bool,
        depth: int,
        images: np.ndarray,
        labels: np.ndarray,
        precision: str = "highest",
    ) -> None:
        import distnn as nn
        import distnn.solvers as S
        from distnn.context import World, world_scope

        self.world = World()
        self.world.context = nn.Context(["cpu:float"], precision=precision)
        self.scope = world_scope
        self.images, self.labels = images, labels
        self.dynamic = dynamic
        self.depth = depth
        with world_scope(self.world):
            self.x, self.t = nn.Variable(images.shape), nn.Variable(labels.shape)
            self.x.d, self.t.d = images, labels
            self.solver = S.Adam(1e-3)
            if not dynamic:
                self.loss = self.build()
                self.solver.set_parameters(nn.get_parameters())

    def build(self) -> Any:
        from static_vs_dynamic import cnn

        import distnn.functions as F

        y = cnn(self.x, self.depth, 1.0, lambda i: False)
        return F.mean(F.softmax_cross_entropy(y, self.t))

    def forward_backward(self) -> float:
        import distnn as nn

        self.x.d, self.t.d = self.images, self.labels
        if self.dynamic:
            with nn.auto_forward():
                self.loss = self.build()
            self.solver.set_parameters(nn.get_parameters(), reset=False, retain_state=True)
        else:
            self.loss.forward(clear_no_need_grad=True)
        self.solver.zero_grad()
        self.loss.backward(clear_buffer=True)
        return float(self.loss.d)

    def step(self) -> float:
        with self.scope(self.world):
            loss = self.forward_backward()
            self.solver.update()
        return loss

    def parameters(self) -> dict[str, Any]:
        import distnn as nn

        with self.scope(self.world):
            return dict(nn.get_parameters())


class Torch:
    """One iteration of training with PyTorch, from distnn's initial weights."""

    def __init__(
        self, weights: dict[str, np.ndarray], images: np.ndarray, labels: np.ndarray,
        double: bool, precision: str = "highest",
    ) -> None:  # fmt: skip
        import torch

        self.torch = torch
        self.autocast = precision == "bf16"
        dtype = torch.float64 if double else torch.float32
        self.weights = {
            k: torch.tensor(w, dtype=dtype, requires_grad=True) for k, w in weights.items()
        }
        self.x = torch.tensor(images, dtype=dtype)
        self.t = torch.tensor(labels.astype(np.int64))
        self.optimizer = torch.optim.Adam(self.weights.values(), lr=1e-3)

    def loss(self) -> Any:
        with self.torch.autocast("cpu", self.torch.bfloat16, enabled=self.autocast):
            return seed_of_torch(self.weights, self.x, self.t)

    def forward_backward(self) -> float:
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        return float(loss.detach())

    def step(self) -> float:
        loss = self.forward_backward()
        self.optimizer.step()
        return loss


def accuracy_of_the_first_step(depth: int, precision: str = "highest") -> dict[str, float]:
    """Loss and gradients of the first iteration against float64, ours and PyTorch's."""
    images, labels = batch()
    ours = Distnn(False, depth, images, labels, precision)
    parameters = ours.parameters()
    weights = {k: p.d.copy() for k, p in parameters.items()}
    with ours.scope(ours.world):
        loss = ours.forward_backward()
    found = {"ours": {k: p.g.astype(np.float64) for k, p in parameters.items()}}
    losses = {"ours": loss}
    for name, double in (("torch", False), ("exact", True)):
        peer = Torch(weights, images, labels, double, "highest" if double else precision)
        losses[name] = peer.forward_backward()
        found[name] = {
            k: w.grad.numpy().astype(np.float64).reshape(weights[k].shape)
            for k, w in peer.weights.items()
        }
    # The exact gradient of a bias before batch normalization is 0: an error relative to it says
    # nothing.
    keys = [k for k in weights if not k.endswith("/conv/b")]
    errors = {
        name: [
            float(np.linalg.norm(found[name][k] - found["exact"][k]))
            / float(np.linalg.norm(found["exact"][k]))
            for k in keys
        ]
        for name in ("ours", "torch")
    }
    return {
        "loss_error": abs(losses["ours"] - losses["exact"]),
        "loss_error_torch": abs(losses["torch"] - losses["exact"]),
        "gradient_error_median": statistics.median(errors["ours"]),
        "gradient_error_median_torch": statistics.median(errors["torch"]),
        "gradient_error_worst_ratio": max(
            a / b for a, b in zip(errors["ours"], errors["torch"], strict=True)
        ),
    }


def timed(step: Callable[[], float]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def times(depth: int, repeats: int, precision: str) -> dict[str, float]:
    """Median and minimum seconds per iteration, alternating."""
    images, labels = batch()
    static = Distnn(False, depth, images, labels, precision)
    weights = {k: p.d.copy() for k, p in static.parameters().items()}
    peers = {
        "torch": Torch(weights, images, labels, False, precision),
        "static": static,
        "dynamic": Distnn(True, depth, images, labels, precision),
    }
    for peer in peers.values():
        peer.step()
        peer.step()
    found: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(repeats):
        for name, peer in peers.items():
            found[name].append(timed(peer.step))
    report = {}
    for name, values in found.items():
        report[f"{name}_seconds"] = statistics.median(values)
        report[f"{name}_seconds_min"] = min(values)
    report["static_over_torch"] = report["static_seconds"] / report["torch_seconds"]
    report["static_over_torch_min"] = report["static_seconds_min"] / report["torch_seconds_min"]
    report["dynamic_over_static"] = report["dynamic_seconds"] / report["static_seconds"]
    report["dynamic_over_static_min"] = report["dynamic_seconds_min"] / report["static_seconds_min"]
    return report


def peak_memory(kind: str, depth: int, precision: str) -> None:
    """Run three iterations of one kind and print the peak memory of this process in MB."""
    images, labels = batch()
    peer: Distnn | Torch
    if kind == "torch":
        shapes = Distnn(False, depth, images, labels, precision).parameters()
        peer = Torch({k: p.d for k, p in shapes.items()}, images, labels, False, precision)
    else:
        peer = Distnn(kind == "dynamic", depth, images, labels, precision)
    for _ in range(3):
        peer.step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def memory(depth: int, precision: str) -> dict[str, float]:
    report = {}
    for kind in ("torch", "static", "dynamic"):
        command = [sys.executable, __file__, "--peak-memory", kind, "--depth", str(depth)]
        command += ["--precision", precision]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        report[f"{kind}_peak_mb"] = float(out)
    return report


def versions() -> dict[str, Any]:
    import torch

    return {"benchmark": "seed", **machine(), "torch": torch.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", choices=["highest", "high", "bf16"], default="highest")
    parser.add_argument("--peak-memory", choices=["torch", "static", "dynamic"])
    options = parser.parse_args()
    if options.peak_memory:
        peak_memory(options.peak_memory, options.depth, options.precision)
        return
    report = versions() | {"depth": options.depth, "batch": BATCH, "repeats": options.repeats}
    report["precision"] = options.precision
    report |= memory(options.depth, options.precision)
    report |= times(options.depth, options.repeats, options.precision)
    report |= accuracy_of_the_first_step(options.depth, options.precision)
    print(
        json.dumps({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in report.items()})
    )


if __name__ == "__main__":
    main()
