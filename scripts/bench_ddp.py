"""Training the seed network on several ranks beside PyTorch DDP (gloo), in one run.

Both sides are measured alike: iterations with exchange of gradients, and without (`no_sync`, which
both have), in turns, each with its default buckets. What the exchange adds to a step is the
difference: it counts what is exposed and what the communication takes from the computation. MPI
uses shared memory between ranks of one machine, gloo TCP; that is part of what is compared.
Prints one JSON line. Needs PyTorch: pip install torch==2.13.0

    python scripts/bench_ddp.py --ranks 2 >> benchmarks/ddp.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from bench_seed import Distnn, Torch, batch
from jobs import machine, rounded, run


class Ours:
    """Iterations with distnn's callback."""

    def __init__(self, comm: Any, depth: int, images: np.ndarray, labels: np.ndarray) -> None:
        import distnn as nn

        self.comm = comm
        self.net = Distnn(False, depth, images, labels)
        gradients = [p.grad for p in self.net.parameters().values()]
        self.callback = self.comm.all_reduce_callback(gradients, division=True)
        self.threads = nn.get_num_threads()

    def step(self) -> None:
        with self.net.scope(self.net.world):
            self.net.loss.forward(clear_no_need_grad=True)
            self.net.solver.zero_grad()
            self.net.loss.backward(clear_buffer=True, communicator_callbacks=self.callback)
            self.net.solver.update()

    def local_step(self) -> None:
        with self.comm.no_sync():
            self.step()

    def gradients(self) -> dict[str, np.ndarray]:
        return {k: p.g.astype(np.float64).reshape(-1) for k, p in self.net.parameters().items()}


class Ddp:
    """Iterations with PyTorch's DistributedDataParallel."""

    def __init__(self, ours: Ours, images: np.ndarray, labels: np.ndarray, meeting: str) -> None:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(ours.threads)
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=ours.comm.rank, world_size=ours.comm.size
        )
        values = {k: p.d.copy() for k, p in ours.net.parameters().items()}
        self.peer = peer = Torch(values, images, labels, False)
        names = list(peer.weights)

        class Network(torch.nn.Module):
            """The loss of the peer's network, as a module that owns its weights."""

            def __init__(self) -> None:
                super().__init__()
                self.weights = torch.nn.ParameterList(
                    [torch.nn.Parameter(w.detach()) for w in peer.weights.values()]
                )
                peer.weights = dict(zip(names, self.weights, strict=True))

            def forward(self) -> Any:
                return peer.loss()

        self.network = torch.nn.parallel.DistributedDataParallel(
            Network(), gradient_as_bucket_view=True
        )
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)

    def step(self) -> None:
        loss = self.network()
        self.network.zero_grad()
        loss.backward()
        self.optimizer.step()

    def local_step(self) -> None:
        with self.network.no_sync():
            self.step()

    def gradients(self) -> dict[str, np.ndarray]:
        return {
            k: w.grad.numpy().astype(np.float64).reshape(-1) for k, w in self.peer.weights.items()
        }


def difference(ours: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> float:
    """Distance of two sets of gradients, relative to the second."""
    error = sum(float(np.sum((ours[k] - g) ** 2)) for k, g in others.items())
    return float(np.sqrt(error / sum(float(np.sum(g**2)) for g in others.values())))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of iterations of both sides, with and without exchange, slowest rank."""
    import distnn.communicators as C

    comm = C.MultiProcessDataParallelCommunicator()
    comm.init()
    from mpi4py import MPI

    raw = MPI.COMM_WORLD.Dup()
    mine = slice(comm.rank * options.batch, (comm.rank + 1) * options.batch)
    images, labels = (
        np.resize(a, (comm.size * options.batch, *a.shape[1:]))[mine] for a in batch()
    )
    ours = Ours(comm, options.depth, images, labels)
    ddp = Ddp(ours, images, labels, options.meeting)
    ours.step()
    ddp.step()
    report: dict[str, Any] = {"gradient_difference": difference(ours.gradients(), ddp.gradients())}
    kinds: dict[str, Callable[[], None]] = {
        "ours": ours.step,
        "ours_local": ours.local_step,
        "ddp": ddp.step,
        "ddp_local": ddp.local_step,
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    reports = []
    for k in range(options.repeats + 2):
        for name, step in kinds.items():
            raw.Barrier()
            begin = time.perf_counter()
            step()
            seconds = raw.allreduce(time.perf_counter() - begin, MPI.MAX)
            if k >= 2:  # the first ones warm up
                found[name].append(seconds)
        reports.append(ours.callback.report())
    report |= {f"{k}_seconds": median(values) for k, values in found.items()}
    for side in ("ours", "ddp"):
        pairs = zip(found[side], found[f"{side}_local"], strict=True)
        report[f"{side}_exchange_seconds"] = median(a - b for a, b in pairs)
    report["ours_over_ddp"] = report["ours_seconds"] / report["ddp_seconds"]
    report |= {
        "ours_exposed_seconds": median(r.exposed for r in reports[2:]),
        "ours_communication_seconds": median(r.communication for r in reports[2:]),
        "threads": ours.threads,
        "rank": comm.rank,
    }
    comm.barrier()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--depth", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128, help="of a rank")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--meeting", help=argparse.SUPPRESS)  # the file over which gloo connects
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        report = measure(options)
        if report.pop("rank") == 0:
            Path(options.worker).write_text(json.dumps(report))
        return
    import torch

    settings = {k: getattr(options, k) for k in ("ranks", "depth", "batch", "repeats")}
    with tempfile.TemporaryDirectory() as folder:
        meeting = ["--meeting", str(Path(folder) / "gloo")]
        found = run(options.ranks, __file__, [*sys.argv[1:], *meeting])
    report = {"benchmark": "ddp", **machine(), "torch": torch.__version__, **settings, **found}
    print(json.dumps(rounded(report)))


if __name__ == "__main__":
    main()
