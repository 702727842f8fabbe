"""The seed experiment: one deep CNN on digits, with a static graph and with a dynamic one.

Static: the graph is built once and run in every iteration. Dynamic: it is rebuilt in every
iteration. With the same seed both give the same bits.

    python examples/static_vs_dynamic.py --mode both --depth 2 --epochs 3
    python examples/static_vs_dynamic.py --mode dynamic --stochastic-depth 0.3
    python examples/static_vs_dynamic.py --context cudnn --device-id 0
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from digits import data_iterator, load
from options import add_context_options, context

import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S


def cnn(x: nn.Variable, depth: int, width: float, skip: Callable[[int], bool]) -> nn.Variable:
    """Unnecessarily deep CNN: x (B, 1, 8, 8) -> scores (B, 10)."""

    def layer(h: nn.Variable, channels: int) -> nn.Variable:
        channels = max(1, round(channels * width))
        h = PF.convolution(h, channels, (3, 3), pad=(1, 1))
        return F.tanh(PF.batch_normalization(h))

    with nn.parameter_scope("cnn"):
        with nn.parameter_scope("conv1"):
            h = layer(x, 64)
        for i in range(depth):
            if i > 0 and skip(i):  # the first changes the number of channels
                continue
            with nn.parameter_scope(f"conv{i + 2}"):
                h = layer(h, 128)
        with nn.parameter_scope("conv_last"):
            h = layer(h, 512)
            h = F.average_pooling(h, (2, 2))
        with nn.parameter_scope("fc"):
            h = F.tanh(PF.affine(h, max(1, round(1024 * width))))
        with nn.parameter_scope("classifier"):
            return PF.affine(h, 10)


@dataclass
class Curve:
    """What a training run showed."""

    mode: str
    losses: list[list[float]] = field(default_factory=list)  # by epoch and iteration
    seconds: float = 0.0

    def means(self) -> list[float]:
        return [float(np.mean(epoch)) for epoch in self.losses]

    def iterations(self) -> int:
        return sum(len(epoch) for epoch in self.losses)


def train(mode: str, options: argparse.Namespace) -> Curve:
    """Train from the start in one mode."""
    nn.clear_parameters()
    nn.seed(options.seed)
    images, labels = load()
    data = data_iterator(images, labels, options.batch_size, options.seed)
    solver = S.Adam(alpha=1e-3)
    curve = Curve(mode)
    losses: list[np.ndarray] = []

    def report(epoch: int) -> None:
        """[ epoch mean-loss iterations ]"""
        print("[", epoch, np.mean(losses), len(losses), "]", end=" ", flush=True)

    data.register_epoch_end_callback(report)
    iteration = (static_iteration if mode == "static" else dynamic_iteration)(solver, options)
    print(f"{mode}:", end=" ", flush=True)
    with data:
        begin = time.perf_counter()
        for epoch in range(options.epochs):
            losses.clear()
            while data.epoch == epoch:
                losses.append(iteration(*data.next()))
            curve.losses.append([float(loss) for loss in losses])
        curve.seconds = time.perf_counter() - begin
    milliseconds = 1000 * curve.seconds / max(curve.iterations(), 1)
    print(f"\n{mode}: {curve.seconds:.1f} s, {milliseconds:.1f} ms per iteration", flush=True)
    return curve


Iteration = Callable[[np.ndarray, np.ndarray], np.ndarray]


def static_iteration(solver: S.Solver, options: argparse.Namespace) -> Iteration:
    """Build the graph once; an iteration sets the inputs and runs it."""
    x = nn.Variable((options.batch_size, 1, 8, 8))
    t = nn.Variable((options.batch_size, 1))
    y = cnn(x, options.depth, options.width_scale, lambda i: False)
    loss = F.mean(F.softmax_cross_entropy(y, t))
    solver.set_parameters(nn.get_parameters())

    def iterate(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        x.d, t.d = images, labels
        loss.forward(clear_no_need_grad=True)
        solver.zero_grad()
        loss.backward(clear_buffer=True)
        solver.update()
        return loss.d.copy()

    return iterate


def dynamic_iteration(solver: S.Solver, options: argparse.Namespace) -> Iteration:
    """Rebuild the graph in each iteration; with stochastic depth it differs each time."""
    rng = np.random.RandomState(options.seed)
    ctx = nn.get_current_context()

    def iterate(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        x = nn.Variable.from_numpy_array(images)
        t = nn.Variable.from_numpy_array(labels)
        x.data.cast(np.float32, ctx)
        with nn.auto_forward():
            y = cnn(
                x,
                options.depth,
                options.width_scale,
                lambda i: options.stochastic_depth > rng.uniform(),
            )
            loss = F.mean(F.softmax_cross_entropy(y, t))
        solver.set_parameters(nn.get_parameters(), reset=False, retain_state=True)
        solver.zero_grad()
        loss.backward(clear_buffer=True)
        solver.update()
        return loss.d.copy()

    return iterate


def plot(curves: list[Curve], path: str) -> None:
    """Mean loss of each epoch, and the wall time, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for curve, style in zip(curves, ("-", "--"), strict=False):
        label = f"{curve.mode}, {curve.seconds:.0f} s"
        axes.semilogy(range(1, len(curve.losses) + 1), curve.means(), style, label=label)
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean loss")
    axes.set_title("Deep CNN on 8x8 digits")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mode", choices=["static", "dynamic", "both"], default="both")
    parser.add_argument("--depth", type=int, default=30, help="layers of 128 channels")
    parser.add_argument("--width-scale", type=float, default=1.0, help="factor of all widths")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=256)
    add_context_options(parser, "0")
    parser.add_argument("--seed", type=int, default=1, help="of first weights and data order")
    parser.add_argument(
        "--stochastic-depth",
        type=float,
        default=0.0,
        metavar="P",
        help="dynamic mode: leave out each layer of an iteration with probability P",
    )
    parser.add_argument("--json", metavar="FILE", help="write settings, losses and times")
    parser.add_argument("--plot", metavar="FILE", help="write a picture of the loss curves")
    options = parser.parse_args(arguments)
    if options.stochastic_depth and options.mode != "dynamic":
        parser.error("--stochastic-depth changes the graph in each iteration: use --mode dynamic")
    return options


def main(arguments: list[str] | None = None) -> list[Curve]:
    options = parse(arguments)
    nn.set_default_context(context(options))
    modes = ["static", "dynamic"] if options.mode == "both" else [options.mode]
    curves = [train(mode, options) for mode in modes]
    for curve in curves:
        last = float(np.median(curve.means()[-5:]))
        print(f"{curve.mode}: median of the last epochs' mean losses {last:.3g}")
    if len(curves) == 2:
        same = curves[0].losses == curves[1].losses
        print("static and dynamic losses are", "bit-identical" if same else "DIFFERENT")
    if options.json:
        settings = {k: v for k, v in vars(options).items() if k not in ("json", "plot")}
        report: dict[str, Any] = {"settings": settings, "runs": [asdict(c) for c in curves]}
        Path(options.json).write_text(json.dumps(report) + "\n")
    if options.plot:
        plot(curves, options.plot)
    return curves


if __name__ == "__main__":
    main()
