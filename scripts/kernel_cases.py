"""Single functions beside PyTorch's, as shares of the bandwidth with which memory is copied.

Each case says how many bytes it has to move at the least: every input that it cannot do without
is read as often as the arithmetic needs, every result is written once. What a function keeps for
its gradient beside that counts against it, as it costs time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

RATE = 1e-3  # of Adam


class Case(NamedTuple):
    """One function: bytes that it moves, and runs of it, ours and PyTorch's."""

    name: str
    nbytes: int
    ours: Callable[[], Any]
    peer: Callable[[], Any]
    results: Callable[[], list[tuple[Any, Any]]]  # pairs of arrays, after both have run


def copy_case(device: str, nbytes: int) -> Case:
    """What the others are compared with: PyTorch copies an array."""
    import torch

    source = torch.ones(nbytes // 4, device=device)
    target = torch.empty_like(source)

    def run() -> None:
        target.copy_(source)

    return Case("copy", 2 * nbytes, run, run, list)


def batch_normalization_cases(
    device: str, shape: tuple[int, ...], channel_last: bool
) -> list[Case]:
    """Batch normalization with relu, float32: two passes over x each way, since sums come first.

    Args:
        shape: (N, C, H, W), which lies in memory as (N, H, W, C) with channel_last.
    """
    import torch
    import torch.nn.functional as T

    import distnn as nn
    import distnn.functions as F

    layout = torch.channels_last if channel_last else torch.contiguous_format
    axis = 3 if channel_last else 1

    def as_ours(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(array, 1, axis))

    rng = np.random.default_rng(0)
    values, slope = rng.standard_normal((2, *shape), np.float32)
    vectors = [np.zeros(shape[1], np.float32), np.ones(shape[1], np.float32)]  # beta, gamma
    statistics = [as_ours(v.reshape(1, -1, 1, 1)) for v in vectors]

    x = nn.Variable.from_numpy_array(as_ours(values), need_grad=True)
    beta, gamma = (nn.Variable.from_numpy_array(v, need_grad=True) for v in statistics)
    running = [nn.Variable.from_numpy_array(v) for v in statistics]
    y = F.fused_batch_normalization(x, beta, gamma, *running, axes=(axis,))
    dy = nn.NdArray.from_numpy_array(as_ours(slope))

    def backward() -> None:
        for variable in (x, beta, gamma):
            variable.grad.zero()
        y.backward(dy)

    xt, dyt = (
        torch.tensor(v, device=device).contiguous(memory_format=layout) for v in (values, slope)
    )
    xt.requires_grad_()
    running_t = [torch.tensor(v, device=device) for v in vectors]
    beta_t, gamma_t = (v.clone().requires_grad_() for v in running_t)
    kept: list[Any] = []

    def forward_of_torch() -> None:
        kept[:] = [T.batch_norm(xt, *running_t, gamma_t, beta_t, training=True).relu_()]

    def backward_of_torch() -> None:
        for tensor in (xt, beta_t, gamma_t):
            tensor.grad = None
        kept[0].backward(dyt, retain_graph=True)

    def as_torchs(array: Any) -> np.ndarray:
        return np.moveaxis(array.get_data("r"), axis, 1)

    name = f"batch normalization + relu{', channels last' if channel_last else ''}"
    return [
        Case(
            name, 3 * values.nbytes, y.forward, forward_of_torch,
            lambda: [(as_torchs(y.data), kept[0])],
        ),
        Case(
            f"{name}, gradient", 5 * values.nbytes, backward, backward_of_torch,
            lambda: [
                (as_torchs(x.grad), xt.grad),
                (beta.grad.get_data("r").reshape(-1), beta_t.grad),
            ],
        ),
    ]  # fmt: skip


def cross_entropy_cases(device: str, rows: int, classes: int) -> list[Case]:
    """Softmax cross entropy, float32: x is read once each way, its gradient is written."""
    import torch
    import torch.nn.functional as T

    import distnn as nn
    import distnn.functions as F

    rng = np.random.default_rng(0)
    scores = rng.standard_normal((rows, classes), np.float32)
    labels = rng.integers(0, classes, (rows, 1))

    x = nn.Variable.from_numpy_array(scores, need_grad=True)
    loss = F.softmax_cross_entropy(x, nn.Variable.from_numpy_array(labels))

    def backward() -> None:
        x.grad.zero()
        loss.backward(1)

    xt = torch.tensor(scores, device=device, requires_grad=True)
    t = torch.tensor(labels[:, 0], device=device)
    ones = torch.ones(rows, device=device)
    kept: list[Any] = []

    def forward_of_torch() -> None:
        kept[:] = [T.cross_entropy(xt, t, reduction="none")]

    def backward_of_torch() -> None:
        xt.grad = None
        kept[0].backward(ones, retain_graph=True)

    return [
        Case(
            "softmax cross entropy", scores.nbytes, loss.forward, forward_of_torch,
            lambda: [(loss.data.get_data("r").reshape(-1), kept[0])],
        ),
        Case(
            "softmax cross entropy, gradient", 2 * scores.nbytes, backward, backward_of_torch,
            lambda: [(x.grad.get_data("r"), xt.grad)],
        ),
    ]  # fmt: skip


def adam_case(device: str, arrays: int, size: int) -> Case:
    """Adam: parameters and two states are read and written, gradients are read."""
    import torch

    import distnn.solvers as S
    from distnn.parameter import get_parameter_or_create

    rng = np.random.default_rng(0)
    values = rng.standard_normal((arrays, size), np.float32)
    slopes = rng.standard_normal((arrays, size), np.float32)
    parameters = {
        f"p{i}": get_parameter_or_create(f"p{i}", (size,), value) for i, value in enumerate(values)
    }
    for parameter, slope in zip(parameters.values(), slopes, strict=True):
        parameter.g = slope
    solver = S.Adam(RATE)
    solver.set_parameters(parameters)

    tensors = [torch.tensor(v, device=device, requires_grad=True) for v in values]
    for tensor, slope in zip(tensors, slopes, strict=True):
        tensor.grad = torch.tensor(slope, device=device)
    optimizer = torch.optim.Adam(tensors, RATE, fused=True)

    return Case(
        "Adam", 7 * values.nbytes, solver.update, optimizer.step,
        lambda: [(parameters["p0"].data.get_data("r"), tensors[0])],
    )  # fmt: skip


def check(case: Case) -> None:
    """Raise AssertionError unless both have computed the same; each has run as often."""
    for ours, peer in case.results():
        np.testing.assert_allclose(
            ours, peer.detach().cpu().numpy(), rtol=1e-3, atol=1e-5, err_msg=case.name
        )
