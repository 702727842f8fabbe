"""Memory of networks: predicted and real peak, with and without recompute, and arenas by liveness.

The seed network is trained: as it is, with recompute (blocks of four layers of which only the last
result is kept), and with a memory budget of 40 % of what it needs. Of it, ResNet-50 and a
Transformer the plans are reported. Prints one JSON line. Bytes do not depend on what else the
machine does.

    python scripts/bench_memory.py >> benchmarks/memory.jsonl
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import networks
import numpy as np
from jobs import ROOT, machine, rounded

import distnn as nn
from distnn.context import World, world_scope

sys.path.insert(0, str(ROOT / "examples"))

BLOCK = 4
BUDGET = 0.4
GATES = {"planned_over_lower_bound": 1.1}  # at most
NETWORKS: dict[str, Callable[[], networks.Network]] = {
    "seed": networks.seed,
    "resnet50": functools.partial(networks.resnet50, 32),
    "transformer": functools.partial(networks.transformer, batch=8),
}


def mark(loss: nn.Variable) -> None:
    """Mark the results of all calls but every `BLOCK`-th tanh."""
    found: list[Any] = []
    loss.visit(found.append)
    tanhs = [node for node in found if node.name == "Tanh"]
    kept = {id(node) for node in tanhs[BLOCK - 1 :: BLOCK]}
    for node in found:
        for output in node.outputs:
            output.recompute = id(node) not in kept


def arena(network: networks.Network) -> dict[str, Any]:
    """What the plan of a network says."""
    x, t = (nn.Variable(array.shape) for array in network.batch())
    report = nn.profiler.memory(network.ours(x, t))
    return {
        "planned_bytes": report.planned,
        "lower_bound_bytes": report.lower_bound,
        "sum_without_reuse_bytes": report.sum_without_reuse,
        "kept_bytes": report.kept,
        "planned_over_lower_bound": report.planned / report.lower_bound,
    }


def peak(network: networks.Network, how: str) -> dict[str, Any]:
    """Predicted and real peak of an iteration, and its gradients' bits."""
    images, labels = network.batch()
    x, t = nn.Variable(images.shape), nn.Variable(labels.shape)
    loss = network.ours(x, t)
    if how == "recomputed":
        mark(loss)
    report = nn.profiler.memory(loss)
    budget = int(BUDGET * report.lower_bound) if how == "budget" else None
    nn.set_memory_budget(budget)
    report = nn.profiler.memory(loss)
    for _ in range(2):  # step by step, then by programs
        x.d, t.d = images, labels
        for p in nn.get_parameters().values():
            p.grad.zero()
        with nn.profiler.peak_memory() as measured:
            loss.forward(clear_no_need_grad=True)
            loss.backward(clear_buffer=True)
    nn.set_memory_budget(None)
    gradients = [p.g.copy() for p in nn.get_parameters().values()]
    return {
        "predicted_bytes": report.lower_bound,
        "peak_bytes": measured.bytes,
        "kept_bytes": report.kept,
        "computed_again": report.computed_again,
        "budget_bytes": budget,
        "gradients": gradients,
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    arenas = {}
    for name, network in NETWORKS.items():
        with world_scope(World()):
            arenas[name] = arena(network())
    peaks = {}
    for how in ("kept", "recomputed", "budget"):
        with world_scope(World()):
            peaks[how] = peak(NETWORKS["seed"](), how)
    found = [each.pop("gradients") for each in peaks.values()]
    same = all(np.array_equal(a, each) for a, *rest in zip(*found, strict=True) for each in rest)
    bound = max(each["planned_over_lower_bound"] for each in arenas.values())
    report = {
        "benchmark": "memory",
        **machine(),
        "seed": peaks,
        "same_bits": same,
        "arenas": arenas,
        "gates": {"planned_over_lower_bound": bound <= GATES["planned_over_lower_bound"]},
    }
    print(json.dumps(rounded(report)))


if __name__ == "__main__":
    main()
