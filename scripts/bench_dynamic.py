"""What a framework costs: small networks, static and dynamic, beside PyTorch and plain NumPy.

A small MLP, whose arithmetic is a tenth of a millisecond, shows what each function call costs; the
cost of recording a call and of a function's work in a graph that runs again; and networks whose
structure changes in every iteration among eight (the same for static graphs: one of eight graphs
each time). All on one thread, alternating in one process; the least of many rounds, since other
programs only ever add to a time. Prints one JSON line. Without PyTorch (pip install torch==2.13.0)
its rows are left out.

    python scripts/bench_dynamic.py >> benchmarks/dynamic.jsonl
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy

import numpy as np
from jobs import machine, rounded

import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S

BATCH, SIZES, CLASSES = 32, (64, 64, 64), 10
STRUCTURES = 8
GATES = {  # at most
    "static_over_torch": 0.35,
    "dynamic_over_torch": 0.5,
    "replay_microseconds": 2.0,
    "record_microseconds": 6.0,
    "record_parametric_microseconds": 15.0,
    "alternating_over_static": 1.1,
}


def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.RandomState(0)
    x = rng.randn(BATCH, SIZES[0]).astype(np.float32)
    return x, rng.randint(0, CLASSES, (BATCH, 1))


def network(x: nn.Variable, t: nn.Variable, repeated: int = 1) -> nn.Variable:
    """Mean cross entropy of an MLP with tanh; the layers between are there `repeated` times."""
    h = F.tanh(PF.affine(x, SIZES[1], name="first"))
    for k in range(repeated):
        h = F.tanh(PF.affine(h, SIZES[2], name=f"between{k}"))
    return F.mean(F.softmax_cross_entropy(PF.affine(h, CLASSES, name="last"), t))


class Training:
    """Iterations of distnn."""

    def __init__(self) -> None:
        nn.clear_parameters()
        self.images, self.labels = batch()
        self.x, self.t = nn.Variable(self.images.shape), nn.Variable(self.labels.shape)
        self.static_losses = [network(self.x, self.t, 1 + k) for k in range(STRUCTURES)]
        self.solver = S.Adam(1e-3)
        self.solver.set_parameters(nn.get_parameters())

    def assign(self) -> None:
        self.x.d, self.t.d = self.images, self.labels

    def static(self, repeated: int = 1) -> None:
        self.assign()
        loss = self.static_losses[repeated - 1]
        loss.forward(clear_no_need_grad=True)
        self.finish(loss)

    def dynamic(self, repeated: int = 1) -> None:
        self.assign()
        with nn.auto_forward():
            loss = network(self.x, self.t, repeated)
        self.finish(loss)

    def finish(self, loss: nn.Variable) -> None:
        self.solver.zero_grad()
        loss.backward(clear_buffer=True)
        self.solver.update()


class Torch:
    """Iterations of PyTorch on an equal network."""

    def __init__(self, fused: bool) -> None:
        import torch

        torch.set_num_threads(1)
        self.torch = torch
        images, labels = batch()
        self.x, self.t = torch.tensor(images), torch.tensor(labels[:, 0])
        widths = [*SIZES, CLASSES]
        layers: list[Any] = []
        for a, b in itertools.pairwise(widths):
            layers += [torch.nn.Linear(a, b), torch.nn.Tanh()]
        self.model = torch.nn.Sequential(*layers[:-1])
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-3, fused=fused)

    def step(self) -> None:
        self.optimizer.zero_grad()
        loss = self.torch.nn.functional.cross_entropy(self.model(self.x), self.t)
        loss.backward()
        self.optimizer.step()


class Plain:
    """Forward and backward of the same network in NumPy, written down by hand, without a solver."""

    def __init__(self) -> None:
        rng = np.random.RandomState(1)
        widths = [*SIZES, CLASSES]
        self.w = [(0.1 * rng.randn(a, b)).astype(np.float32) for a, b in itertools.pairwise(widths)]
        self.b = [np.zeros(b, np.float32) for b in widths[1:]]
        self.x, self.t = batch()
        self.rows = np.arange(BATCH)

    def step(self) -> None:
        hidden = [self.x]
        for w, b in zip(self.w[:-1], self.b, strict=False):
            hidden.append(np.tanh(hidden[-1] @ w + b))
        z = hidden[-1] @ self.w[-1] + self.b[-1]
        z -= z.max(1, keepdims=True)
        p = np.exp(z)
        p /= p.sum(1, keepdims=True)
        p[self.rows, self.t[:, 0]] -= 1
        d = p / BATCH
        for k in range(len(self.w) - 1, -1, -1):
            gradients = hidden[k].T @ d, d.sum(0)
            assert len(gradients) == 2
            if k:
                d = (d @ self.w[k].T) * (1 - hidden[k] * hidden[k])


class Chain:
    """tanh after tanh of a small array: what a function costs besides its arithmetic."""

    LENGTH = 50

    def __init__(self) -> None:
        self.x = nn.Variable((4, 4), need_grad=True)
        self.x.d = 0.5
        self.y = self.static()
        self.array = np.full((4, 4), 0.5, np.float32)
        self.out = np.empty_like(self.array)

    def static(self) -> nn.Variable:
        h = self.x
        for _ in range(self.LENGTH):
            h = F.tanh(h)
        return h

    def run(self) -> None:
        self.y.forward(clear_buffer=True)

    def arithmetic(self) -> None:
        for _ in range(self.LENGTH):
            np.tanh(self.array, self.out)

    def parametric(self) -> None:
        for _ in range(self.LENGTH):
            PF.affine(self.x, 4, name="chain")


def least(works: dict[str, Callable[[], Any]], rounds: int, calls: int) -> dict[str, float]:
    """Least seconds of one call of each, in turns."""
    found = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            begin = time.perf_counter()
            for _ in range(calls):
                work()
            found[name] = min(found[name], (time.perf_counter() - begin) / calls)
    return found


def alternating(step: Callable[[int], None]) -> Callable[[], None]:
    """Steps whose structure is another one each time, all eight in one call."""

    def steps() -> None:
        for repeated in range(1, STRUCTURES + 1):
            step(repeated)

    return steps


def measure(rounds: int) -> dict[str, Any]:
    training, chain = Training(), Chain()
    works: dict[str, Callable[[], Any]] = {
        "static": training.static,
        "dynamic": training.dynamic,
        "plain_numpy": Plain().step,
    }
    with contextlib.suppress(ImportError):
        works |= {"torch": Torch(False).step, "torch_fused_adam": Torch(True).step}
    report = {f"{k}_microseconds": 1e6 * v for k, v in least(works, rounds, 30).items()}
    for name in ("static", "dynamic"):
        for peer in ("torch", "torch_fused_adam"):
            if peer in works:
                ratio = report[f"{name}_microseconds"] / report[f"{peer}_microseconds"]
                report[f"{name}_over_{peer}"] = ratio
    report["dynamic_over_static"] = report["dynamic_microseconds"] / report["static_microseconds"]
    calls = {
        "run": chain.run,
        "arithmetic": chain.arithmetic,
        "record": chain.static,
        "parametric": chain.parametric,
    }
    each = {k: 1e6 * v / chain.LENGTH for k, v in least(calls, rounds, 10).items()}
    report["replay_microseconds"] = each["run"] - each["arithmetic"]
    report["record_microseconds"] = each["record"]
    report["record_parametric_microseconds"] = each["parametric"]
    structures = {
        "static": alternating(training.static),
        "dynamic": alternating(training.dynamic),
    }
    found = least(structures, rounds, 3)
    report["alternating_static_microseconds"] = 1e6 * found["static"] / STRUCTURES
    report["alternating_dynamic_microseconds"] = 1e6 * found["dynamic"] / STRUCTURES
    report["alternating_over_static"] = found["dynamic"] / found["static"]
    return report


def gates(report: dict[str, Any]) -> dict[str, bool]:
    """Which gates a report passes."""
    return {name: report[name] <= limit for name, limit in GATES.items() if name in report}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    report = {"benchmark": "dynamic", **machine(), **measure(options.rounds)}
    report["passed"] = gates(report)
    print(json.dumps(rounded(report)))


if __name__ == "__main__":
    main()
