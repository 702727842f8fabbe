"""Data-parallel training on digits: each rank has its slice of the data, gradients are averaged.

Runs on one process, under the launcher, and under plain mpirun:

    python examples/digits_data_parallel.py
    distnn-launch -n 2 examples/digits_data_parallel.py
    mpirun -n 2 python examples/digits_data_parallel.py --exchange all_reduce
    distnn-launch -n 2 examples/digits_data_parallel.py --context cudnn
"""

from __future__ import annotations

import argparse
import time
import zlib

import numpy as np
from digits import HELD_OUT, data_iterator, load
from options import add_context_options, context

import distnn as nn
import distnn.communicators as C
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S


def network(x: nn.Variable) -> nn.Variable:
    """x (B, 1, 8, 8) -> scores (B, 10); without batch statistics, which would differ by rank."""
    h = x * (1 / 16)
    with nn.parameter_scope("conv1"):
        h = F.relu(PF.convolution(h, 32, (3, 3), pad=(1, 1)))
    with nn.parameter_scope("conv2"):
        h = F.relu(PF.convolution(h, 32, (3, 3), pad=(1, 1)))
        h = F.max_pooling(h, (2, 2))
    with nn.parameter_scope("conv3"):
        h = F.relu(PF.convolution(h, 64, (3, 3), pad=(1, 1)))
        h = F.max_pooling(h, (2, 2))
    with nn.parameter_scope("fc"):
        h = F.relu(PF.affine(h, 128))
    with nn.parameter_scope("classifier"):
        return PF.affine(h, 10)


def accuracy(images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images that the network, in its present state, classifies correctly."""
    with nn.no_grad(), nn.auto_forward():
        scores = network(nn.Variable.from_numpy_array(images))
    return float(np.mean(scores.d.argmax(1) == labels[:, 0]))


def parameters_are_identical(comm: C.Comm) -> bool:
    """Compare checksums of all parameters over all ranks."""
    checksum = 0
    for parameter in nn.get_parameters(grad_only=False).values():
        checksum = zlib.crc32(parameter.data.get_data("r").tobytes(), checksum)
    mine = nn.NdArray.from_numpy_array(np.array([checksum], np.int64))
    everybodys = [nn.NdArray.from_numpy_array(np.zeros(1, np.int64)) for _ in range(comm.size)]
    comm.all_gather(mine, everybodys)
    return len({int(a.data[0]) for a in everybodys}) == 1


def main(arguments: list[str] | None = None) -> float:
    """Train; returns the accuracy on images that were held out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=128, help="of all ranks together")
    parser.add_argument("--seed", type=int, default=313)
    parser.add_argument("--exchange", choices=["callback", "all_reduce"], default="callback")
    add_context_options(parser, "the number of the rank on its machine")
    options = parser.parse_args(arguments)

    comm = C.MultiProcessDataParallelCommunicator()
    comm.init()
    nn.set_default_context(context(options, comm.local_rank))
    nn.seed(options.seed)
    images, labels = load()
    train_images, train_labels = images[:-HELD_OUT], labels[:-HELD_OUT]
    if options.batch_size % comm.size:
        parser.error(f"--batch-size {options.batch_size} does not divide by {comm.size} ranks")
    batch = options.batch_size // comm.size
    data = data_iterator(train_images, train_labels, batch, options.seed)
    if comm.size > 1:
        data = data.slice(
            np.random.RandomState(options.seed), num_of_slices=comm.size, slice_pos=comm.rank
        )

    x, t = nn.Variable((batch, 1, 8, 8)), nn.Variable((batch, 1))
    loss = F.mean(F.softmax_cross_entropy(network(x), t))
    solver = S.Adam(alpha=2e-3)
    solver.set_parameters(nn.get_parameters())
    gradients = [p.grad for p in nn.get_parameters().values()]
    callback = None
    if options.exchange == "callback":
        callback = comm.all_reduce_callback(gradients, pack_size=1 << 16, division=True)

    begin = time.perf_counter()
    with data:
        for epoch in range(options.epochs):
            losses = []
            while data.epoch == epoch:
                x.d, t.d = data.next()
                loss.forward(clear_no_need_grad=True)
                solver.zero_grad()
                loss.backward(clear_buffer=True, communicator_callbacks=callback)
                if callback is None:
                    comm.all_reduce(gradients, division=True)
                solver.update()
                losses.append(float(loss.d))
            mean = nn.NdArray.from_numpy_array(np.array([np.mean(losses)]))
            comm.all_reduce(mean, division=True)
            if comm.rank == 0:
                held_out = accuracy(images[-HELD_OUT:], labels[-HELD_OUT:])
                bar = "#" * int(20 * (epoch + 1) / options.epochs)
                print(
                    f"epoch {epoch + 1:2d}/{options.epochs} [{bar:20s}] "
                    f"loss {mean.data[0]:.4f}  accuracy {held_out:.4f}",
                    flush=True,
                )
    seconds = time.perf_counter() - begin
    identical = parameters_are_identical(comm)
    held_out = accuracy(images[-HELD_OUT:], labels[-HELD_OUT:])
    if comm.rank == 0:
        state = "identical" if identical else "DIFFERENT"
        print(
            f"accuracy {held_out:.4f} on {HELD_OUT} held-out images after {seconds:.1f} s on "
            f"{comm.size} rank(s); parameters of all ranks are {state}"
        )
    if not identical:
        raise SystemExit(1)
    return held_out


if __name__ == "__main__":
    main()
