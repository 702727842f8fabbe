"""Functions and networks on the CPU with NumPy's and with compiled kernels, beside PyTorch.

Each row is forward and backward of one function, a solver's update, or an iteration of training a
network, in turns in one process; the median and the least of many rounds, and ratios of medians.
Prints a table to stderr and one JSON line. Without PyTorch (pip install torch==2.13.0) its column
is left out. With --precision bf16 distnn's column is bfloat16, beside its own float32 and PyTorch's
autocast; single functions of PyTorch take tensors of bfloat16 then, as they do inside of networks.

    python scripts/bench_cpu.py >> benchmarks/cpu.jsonl
    python scripts/bench_cpu.py --only batch_normalization --rounds 30
    python scripts/bench_cpu.py --precision bf16 --only training
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

# Its threads would wait for work on the cores that ours need.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import networks
import numpy as np
from jobs import installed, machine, rounded
from networks import Network
from trainers import Ours, Torch, compared

import distnn as nn
import distnn.functions as F
import distnn.solvers as S
from distnn.ext_utils import get_extension_context

Work = Callable[[], Any]


def context(precision: str) -> nn.Context:
    return get_extension_context("cpu", precision="highest" if precision == "float32" else "bf16")


def autocast(torch: Any, precision: str) -> Any:
    """PyTorch's way to compute in bfloat16; nothing in float32."""
    return torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()


class Row:
    """One function: of distnn's Variables, and of PyTorch's tensors.

    Args:
        ours: of Variables, static.
        theirs: of (torch, tensors).
        shapes: of the inputs that have gradients.
        labels: (shape, number of classes) of an input of labels that comes last.
        fixed: how many of the inputs, from the first on, have no gradients after all.
    """

    def __init__(
        self,
        ours: Callable[..., nn.Variable],
        theirs: Callable[..., Any],
        *shapes: tuple[int, ...],
        labels: tuple[tuple[int, ...], int] | None = None,
        fixed: int = 0,
    ) -> None:
        self.ours, self.theirs, self.fixed = ours, theirs, fixed
        rng = np.random.default_rng(0)
        self.arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        self.labels = None if labels is None else rng.integers(0, labels[1], labels[0])

    def distnn(self, kernels: str, precision: str) -> Work:
        nn.set_cpu_kernels(kernels)
        with nn.context_scope(context(precision)):
            return self._distnn()

    def _distnn(self) -> Work:
        inputs = [
            nn.Variable.from_numpy_array(a, need_grad=i >= self.fixed)
            for i, a in enumerate(self.arrays)
        ]
        leaves = inputs[self.fixed :]
        if self.labels is not None:
            inputs.append(nn.Variable.from_numpy_array(self.labels))
        y = self.ours(*inputs)
        y.forward()
        dy = np.ones(y.shape, np.float32)

        def work() -> None:
            for leaf in leaves:
                leaf.grad.zero()
            y.forward(clear_no_need_grad=True)
            y.backward(dy, clear_buffer=True)

        return work

    def torch(self, torch: Any, precision: str) -> Work:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        inputs = [
            torch.tensor(a, dtype=dtype, requires_grad=i >= self.fixed)
            for i, a in enumerate(self.arrays)
        ]
        leaves = inputs[self.fixed :]
        if self.labels is not None:
            inputs.append(torch.tensor(self.labels))

        def forward() -> Any:
            with autocast(torch, precision):
                return self.theirs(torch, *inputs)

        dy = torch.ones_like(forward())

        def work() -> None:
            for leaf in leaves:
                leaf.grad = None
            forward().backward(dy)

        return work


class Update:
    """A solver's update of one large parameter."""

    def __init__(self, ours: Callable[[], Any], theirs: Callable[..., Any], size: int) -> None:
        self.solver, self.optimizer, self.size = ours, theirs, size

    def distnn(self, kernels: str, precision: str) -> Work:
        nn.set_cpu_kernels(kernels)
        w = nn.Variable((self.size,), need_grad=True)
        w.d = w.g = 1e-3
        solver = self.solver()
        solver.set_parameters({"w": w})

        def work() -> None:
            # Which kernels a rule is run with is decided when it runs.
            nn.set_cpu_kernels(kernels)
            solver.update()

        return work

    def torch(self, torch: Any, precision: str) -> Work:
        w = torch.full((self.size,), 1e-3, requires_grad=True)
        w.grad = torch.full((self.size,), 1e-3)
        return self.optimizer(torch, [w]).step


class Training:
    """An iteration of training a network, with its solver."""

    def __init__(self, network: Callable[[], Network]) -> None:
        self.network = network
        self.trainers: dict[str, Ours] = {}

    def distnn(self, kernels: str, precision: str) -> Work:
        nn.set_cpu_kernels(kernels)
        trainer = Ours(self.network(), "cpu", precision, dynamic=False)
        self.trainers[precision] = trainer

        def work() -> None:
            nn.set_cpu_kernels(kernels)
            trainer.step()

        return work

    def torch(self, torch: Any, precision: str) -> Work:
        network, trainer = self.network(), self.trainers[precision]
        values, trained = trainer.parameters(), trainer.parameters(trained=True)
        exact, peer = (Torch(network, values, trained, "cpu", p) for p in ("double", precision))
        compared(trainer, peer, exact, precision)  # raises unless both compute the same
        return peer.step


def normalized(x: Any, beta: Any, gamma: Any) -> Any:
    return F.batch_normalization(x, beta, gamma, *running(x))


def running(x: Any) -> list[nn.Variable]:
    return [nn.Variable((1, x.shape[1], 1, 1)) for _ in range(2)]


def torch_normalized(torch: Any, x: Any, beta: Any, gamma: Any) -> Any:
    mean, variance = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
    return torch.nn.functional.batch_norm(
        x, mean, variance, gamma.reshape(-1), beta.reshape(-1), training=True
    )


def with_channels(*shape: int) -> list[tuple[int, ...]]:
    return [shape, (1, shape[1], 1, 1), (1, shape[1], 1, 1)]


def convolved(
    x: tuple[int, ...], w: tuple[int, ...], pad: int = 0, stride: int = 1, dilation: int = 1
) -> Row:
    """A convolution without bias; groups follow from the shapes, and images have no gradient."""
    group = x[1] // w[1]
    return Row(
        lambda x, w: F.convolution(
            x, w, None, 1, *[(n, n) for n in (pad, stride, dilation)], group
        ),
        lambda torch, x, w: torch.conv2d(x, w, None, stride, pad, dilation, group),
        x,
        w,
        fixed=int(x[1] == 3),
    )


MAPS = (256, 128, 8, 8)
ROWS: dict[str, Row | Update | Training] = {
    "training: Transformer": Training(
        lambda: networks.transformer(d=256, heads=8, batch=16, length=128)
    ),
    "training: LSTM": Training(networks.lstm),
    "training: ResNet-18": Training(networks.resnet18),
    "training: ResNet-50": Training(lambda: networks.resnet50(8, channel_last=False)),
    "convolution 3x3": convolved(MAPS, (128, 128, 3, 3), 1),
    "convolution 3x3 of large maps": convolved((32, 64, 56, 56), (64, 64, 3, 3), 1),
    "convolution 3x3 of many channels": convolved((32, 512, 7, 7), (512, 512, 3, 3), 1),
    "convolution 3x3, stride 2": convolved((32, 64, 56, 56), (128, 64, 3, 3), 1, 2),
    "convolution 3x3, dilated": convolved((32, 128, 28, 28), (128, 128, 3, 3), 2, 1, 2),
    "convolution 3x3, depthwise": convolved((32, 128, 28, 28), (128, 1, 3, 3), 1),
    "convolution 7x7, stride 2": convolved((8, 3, 224, 224), (64, 3, 7, 7), 3, 2),
    "convolution 1x1": convolved((32, 256, 14, 14), (64, 256, 1, 1)),
    "batch_normalization": Row(normalized, torch_normalized, *with_channels(*MAPS)),
    "batch_normalization, tanh": Row(
        lambda *a: F.tanh(normalized(*a)),
        lambda torch, *a: torch.tanh(torch_normalized(torch, *a)),
        *with_channels(*MAPS),
    ),
    "batch_normalization of large maps": Row(
        normalized, torch_normalized, *with_channels(32, 64, 56, 56)
    ),
    "fused_batch_normalization": Row(
        lambda x, b, g, z: F.fused_batch_normalization(x, b, g, *running(x), z),
        lambda torch, x, b, g, z: torch.relu(torch_normalized(torch, x, b, g) + z),
        *with_channels(32, 64, 56, 56),
        (32, 64, 56, 56),
    ),
    "layer_normalization": Row(
        F.layer_normalization,
        lambda torch, x, b, g: torch.nn.functional.layer_norm(x, x.shape[1:], g[0], b[0]),
        (2048, 1024),
        (1, 1024),
        (1, 1024),
    ),
    "relu": Row(F.relu, lambda torch, x: torch.relu(x), MAPS),
    "sigmoid": Row(F.sigmoid, lambda torch, x: torch.sigmoid(x), MAPS),
    "tanh": Row(F.tanh, lambda torch, x: torch.tanh(x), MAPS),
    "swish": Row(F.swish, lambda torch, x: torch.nn.functional.silu(x), MAPS),
    "gelu": Row(F.gelu, lambda torch, x: torch.nn.functional.gelu(x, approximate="tanh"), MAPS),
    "softmax": Row(F.softmax, lambda torch, x: torch.softmax(x, -1), (4096, 1000)),
    "softmax_cross_entropy": Row(
        lambda x, t: F.mean(F.softmax_cross_entropy(x, t)),
        lambda torch, x, t: torch.nn.functional.cross_entropy(x, t[:, 0]),
        (4096, 1000),
        labels=((4096, 1), 1000),
    ),
    "average_pooling": Row(
        lambda x: F.average_pooling(x, (2, 2)),
        lambda torch, x: torch.nn.functional.avg_pool2d(x, 2),
        (256, 512, 8, 8),
    ),
    "max_pooling": Row(
        lambda x: F.max_pooling(x, (3, 3), stride=(2, 2), pad=(1, 1)),
        lambda torch, x: torch.nn.functional.max_pool2d(x, 3, 2, 1),
        (32, 64, 112, 112),
    ),
    "embed": Row(
        lambda w, i: F.embed(i, w),
        lambda torch, w, i: torch.nn.functional.embedding(i, w),
        (10_000, 128),
        labels=((4096,), 10_000),
    ),
    "Adam": Update(S.Adam, lambda torch, w: torch.optim.Adam(w, fused=True), 13_000_000),
    "Sgd": Update(S.Sgd, lambda torch, w: torch.optim.SGD(w, 1e-3, fused=True), 13_000_000),
}


def calls_of(work: Work) -> int:
    """How many calls take a twentieth of a second."""
    begin = time.perf_counter()
    work()
    return max(1, int(0.05 / (time.perf_counter() - begin)))


def measure(row: Row | Update | Training, rounds: int, precision: str) -> dict[str, Any]:
    """Milliseconds: medians and least, and ratios of medians."""
    works = {"numba": row.distnn("numba", precision)}
    if precision == "float32":
        works["numpy"] = row.distnn("numpy", precision)
    else:
        works["float32"] = row.distnn("numba", "float32")
    try:
        import torch

        torch.set_num_threads(nn.get_num_threads())
        works["torch"] = row.torch(torch, precision)
    except ImportError:
        pass
    for work in works.values():
        work()  # compiles
    calls = {name: calls_of(work) for name, work in works.items()}
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            work()  # while threads of the one before still wait for work
            begin = time.perf_counter()
            for _ in range(calls[name]):
                work()
            times[name].append(1e3 * (time.perf_counter() - begin) / calls[name])
    report: dict[str, Any] = {}
    for name, found in times.items():
        report[name] = {"median": float(np.median(found)), "least": min(found)}
    for peer in ("numpy", "float32", "torch"):
        if peer in report:
            report[f"numba_over_{peer}"] = report["numba"]["median"] / report[peer]["median"]
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="", help="rows whose names contain this")
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32")
    options = parser.parse_args()
    report: dict[str, Any] = {"benchmark": "cpu", **machine()}
    report |= {name: installed(name) for name in ("numba", "torch")}
    report["threads"] = nn.get_num_threads()
    report["precision"] = options.precision
    report["rows"] = {}
    peer = "numpy" if options.precision == "float32" else "float32"
    print(f"{'ms, median':36}  numba {peer:>7}   torch{'/' + peer:>8}  /torch", file=sys.stderr)
    for name, row in ROWS.items():
        if options.only in name:
            found = report["rows"][name] = measure(row, options.rounds, options.precision)
            figures = [found[k]["median"] for k in ("numba", peer, "torch") if k in found]
            figures += [found[k] for k in (f"numba_over_{peer}", "numba_over_torch") if k in found]
            print(f"{name:36}" + "".join(f"{f:8.2f}" for f in figures), file=sys.stderr)
    print(json.dumps(rounded(report)))


if __name__ == "__main__":
    main()
