"""Solvers in float64 against PyTorch's, where its rule is the same.

Where only eps stands elsewhere it is zero; PyTorch's decoupled decay is a multiple of the learning
rate, ours is not.
"""

from __future__ import annotations

import numpy as np
import pytest

import distnn as nn
import distnn.solvers as S
from distnn.parameter import create_parameter

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

ROWS = {
    "Sgd": (S.Sgd, {"lr": 0.1}, "SGD", {"lr": 0.1}),
    "Momentum": (S.Momentum, {"lr": 0.1}, "SGD", {"lr": 0.1, "momentum": 0.9}),
    "Nesterov": (
        S.Nesterov,
        {"lr": 0.1},
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    ),
    "Adagrad": (S.Adagrad, {"eps": 1e-2}, "Adagrad", {"lr": 1e-2, "eps": 1e-2}),
    "Adadelta": (
        S.Adadelta,
        {"decay": 0.8, "eps": 1e-2},
        "Adadelta",
        {"lr": 1.0, "rho": 0.8, "eps": 1e-2},
    ),
    "RMSprop": (
        S.RMSprop,
        {"decay": 0.8, "eps": 1e-2},
        "RMSprop",
        {"lr": 1e-3, "alpha": 0.8, "eps": 1e-2},
    ),
    "RMSpropGraves": (
        S.RMSpropGraves,
        {"lr": 0.1, "eps": 0.0},
        "RMSprop",
        {"lr": 0.1, "alpha": 0.95, "momentum": 0.9, "centered": True, "eps": 0.0},
    ),
    "Adam": (S.Adam, {"eps": 0.0}, "Adam", {"lr": 1e-3, "eps": 0.0}),
    "AdamW": (
        S.AdamW,
        {"alpha": 0.1, "eps": 0.0, "wd": 0.02},
        "AdamW",
        {"lr": 0.1, "eps": 0.0, "weight_decay": 0.2},
    ),
    "Adamax": (S.Adamax, {"eps": 0.0}, "Adamax", {"lr": 2e-3, "eps": 0.0}),
    "AMSGRAD": (
        S.AMSGRAD,
        {"eps": 0.0, "beta2": 0.9, "bias_correction": True},
        "Adam",
        {"lr": 1e-3, "betas": (0.9, 0.9), "eps": 0.0, "amsgrad": True},
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_fifty_steps_end_where_those_of_pytorch_end(name):
    ours, settings, theirs, their_settings = ROWS[name]
    solver = ours(**settings)
    rng = np.random.RandomState(0)
    with nn.context_scope(nn.Context(["cpu:double"])):
        w = create_parameter("w", (4, 5), None, True)
    w.d = rng.uniform(-1, 1, w.shape)
    solver.set_parameters({"w": w})
    tensor = torch.tensor(w.d.copy(), requires_grad=True)
    optimizer = getattr(torch.optim, theirs)([tensor], **their_settings)
    for _ in range(50):
        g = rng.uniform(-1, 1, w.shape)
        w.g = g
        solver.update()
        tensor.grad = torch.tensor(g)
        optimizer.step()
    assert w.d.dtype == np.float64
    np.testing.assert_allclose(w.d, tensor.detach().numpy(), rtol=1e-9, atol=1e-10)
