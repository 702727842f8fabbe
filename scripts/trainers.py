"""Training steps of one network, with distnn and with PyTorch, from equal parameters.

Precisions: "float32", "tf32" (products on tensor cores; a GPU's), "half" (activations in float16,
parameters in float32, dynamic loss scaling), "bf16" (activations in bfloat16), and
"double" for PyTorch as the reference.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
from networks import Network, tensors_of

# And how exact a number is.
PRECISIONS = {"float32": 1e-6, "tf32": 1e-3, "half": 2e-3, "bf16": 1.6e-2}
RATE = 1e-4  # small: the same batch again and again must not diverge
DECAY = 1e-4  # of Momentum
SCALE = 1024.0  # of the loss in half precision, at first


class WrongNetworkError(Exception):
    """The networks of distnn and PyTorch do not compute the same."""


class Ours:
    """A network of distnn in a World of its own."""

    def __init__(self, network: Network, extension: str, precision: str, dynamic: bool) -> None:
        import distnn as nn
        import distnn.solvers as S
        from distnn.context import World, world_scope
        from distnn.experimental.mixed_precision_training import DynamicLossScalingUpdater
        from distnn.ext_utils import get_extension_context

        self.network, self.dynamic = network, dynamic
        self.world, self._scope = World(), world_scope
        self.world.context = get_extension_context(
            extension,
            type_config="half" if precision == "half" else "float",
            precision=precision if precision in ("tf32", "bf16") else "highest",
        )
        self.solver = getattr(S, network.solver)(RATE)
        with self._scope(self.world):
            self.x, self.t = map(nn.Variable.from_numpy_array, network.batch())
            self.loss = self._build()
            self.solver.set_parameters(nn.get_parameters())
        self.scale, self.updater = 1.0, None
        if precision == "half":
            self.scale = SCALE
            self.updater = DynamicLossScalingUpdater(
                self.solver,
                self._rebuild if dynamic else self.loss,
                scale=SCALE,
                weight_decay=self._decay(),
            )

    def parameters(self, trained: bool = False) -> dict[str, np.ndarray]:
        """Values of the parameters by name; buffers too, unless only what is trained is wanted."""
        import distnn as nn

        with self._scope(self.world):
            return {
                k: p.data.get_data("r").copy()
                for k, p in nn.get_parameters(grad_only=trained).items()
            }

    def gradients(self) -> tuple[float, dict[str, np.ndarray]]:
        """Loss and gradients, with PyTorch's shapes; parameters stay as they are."""
        with self._scope(self.world):
            self._forward_backward()
            found = self.solver.get_parameters()
            arrays = {k: p.grad.get_data("r").astype(np.float64) for k, p in found.items()}
            tensors = tensors_of(self.network, {k: g / self.scale for k, g in arrays.items()})
            return float(self.loss.data.get_data("r")), tensors

    def step(self) -> None:
        """One training step; on a GPU it may still run when this returns."""
        with self._scope(self.world):
            if self.updater is not None:
                self.updater.update()
                return
            self._forward_backward()
            if self._decay():
                self.solver.weight_decay(self._decay())
            self.solver.update()

    def _decay(self) -> float | None:
        return DECAY if self.network.solver == "Momentum" else None

    def _forward_backward(self) -> None:
        if self.dynamic:
            self._rebuild()
        else:
            self.loss.forward(clear_no_need_grad=True)
        self.solver.zero_grad()
        self.loss.backward(self.scale, clear_buffer=True)

    def _rebuild(self) -> Any:
        import distnn as nn

        with nn.auto_forward():
            self.loss = self._build()
        self.solver.set_parameters(nn.get_parameters(), reset=False, retain_state=True)
        return self.loss

    def _build(self) -> Any:
        return self.network.ours(self.x, self.t)


class Torch:
    """The same network in eager PyTorch, with its fused optimizers."""

    def __init__(
        self, network: Network, values: Mapping[str, np.ndarray], trained: Mapping[str, Any],
        device: str, precision: str,
    ) -> None:  # fmt: skip
        import torch

        self.torch, self.network, self.device = torch, network, device
        self.dtype = torch.float64 if precision == "double" else torch.float32
        self.activations = {"half": torch.float16, "bf16": torch.bfloat16}.get(precision)
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"  # of float32 alone
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        self.weights = {}
        learned_names = tensors_of(network, {k: v for k, v in values.items() if k in trained})
        for name, value in tensors_of(network, values).items():
            tensor = torch.tensor(value, dtype=self.dtype, device=device)
            if network.channel_last and tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            self.weights[name] = tensor.requires_grad_(name in learned_names)
        x, t = network.batch()
        floats = x.dtype.kind == "f"
        self.x = torch.tensor(x, device=device, dtype=self.dtype if floats else torch.int64)
        self.t = torch.tensor(t, device=device, dtype=torch.int64)
        learned = [w for w in self.weights.values() if w.requires_grad]
        if network.solver == "Momentum":
            self.optimizer: Any = torch.optim.SGD(
                learned, RATE, momentum=0.9, weight_decay=DECAY, fused=True
            )
        else:
            self.optimizer = torch.optim.Adam(learned, RATE, fused=True)
        self.scaler = torch.amp.GradScaler(device, init_scale=SCALE, enabled=precision == "half")

    def gradients(self) -> tuple[float, dict[str, np.ndarray]]:
        """Loss and gradients; parameters stay as they are."""
        loss = self._forward_backward()
        scale = self.scaler.get_scale()
        return float(loss), {
            k: w.grad.double().cpu().numpy() / scale
            for k, w in self.weights.items()
            if w.requires_grad
        }

    def step(self) -> None:
        """One training step; on a GPU it may still run when this returns."""
        self._forward_backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _forward_backward(self) -> Any:
        # To try all algorithms in float64 would take long.
        self.torch.backends.cudnn.benchmark = self.dtype is self.torch.float32
        mixed = self.torch.autocast(self.device, self.activations)
        with mixed if self.activations else nullcontext():
            loss = self.network.peers(self.weights, self.x, self.t)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        return loss.detach()


def gradient_error(found: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray]) -> float:
    """Median over parameters of the relative distance |found - exact| / |exact|.

    Infinite where one of the gradients found is not finite. The exact gradient of a bias before
    batch normalization is 0: it does not count.

    >>> a = np.ones(4)
    >>> gradient_error({"w": 1.5 * a, "conv/b": a}, {"w": a, "conv/b": 0 * a})
    0.5
    """
    if not all(np.isfinite(value).all() for value in found.values()):
        return math.inf
    return statistics.median(
        float(np.linalg.norm(found[name] - value) / np.linalg.norm(value))
        for name, value in exact.items()
        if not name.endswith("conv/b")
    )


def compared(ours: Any, peer: Any, exact: Any, precision: str) -> dict[str, float]:
    """Loss and gradients of the first step, ours and PyTorch's, against PyTorch in float64.

    Raises: WrongNetworkError where ours are much farther from them than PyTorch's of the same
        precision.
    """
    (loss, found), (loss_torch, found_torch), (loss_exact, gradients) = (
        contestant.gradients() for contestant in (ours, peer, exact)
    )
    report = {
        "loss": loss,
        "loss_error": abs(loss - loss_exact) / abs(loss_exact),
        "loss_error_torch": abs(loss_torch - loss_exact) / abs(loss_exact),
        "gradient_error": gradient_error(found, gradients),
        "gradient_error_torch": gradient_error(found_torch, gradients),
    }
    for what in ("loss", "gradient"):
        error, error_torch = report[f"{what}_error"], report[f"{what}_error_torch"]
        # Written so that NaN is wrong.
        if not error <= 5 * error_torch + PRECISIONS[precision]:
            raise WrongNetworkError(
                f"the {what} of distnn's network is {error:.2g} away from float64 and PyTorch's "
                f"{error_torch:.2g}: they do not compute the same, and times would say nothing"
            )
    return report
