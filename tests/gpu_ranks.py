"""What tests of ranks on GPUs share."""

from __future__ import annotations

import gpu_emulator
import numpy as np
import pytest

import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF

emulated = pytest.mark.skipif(not gpu_emulator.installed(), reason="needs --device emulated")
over_gpus = pytest.mark.parametrize("transport", ["nccl 2", "nccl 3", "staged 2", "staged 3"])
over_nccl = pytest.mark.parametrize("transport", ["nccl 2", "nccl 3"])


def values(rank, shape, dtype):
    random = np.random.RandomState(300 + rank)
    if np.dtype(dtype).kind in "iu":
        return random.randint(0, 50, shape).astype(dtype)
    return random.uniform(-1, 1, shape).astype(dtype)


def on_gpu(array):
    import cupy

    return cupy.asarray(array)


def carry_out(comm, job):
    """Run a job for the transport as a collective; returns what it returns, after the GPU."""
    from distnn.communicators.header import Schedule

    return comm._run(Schedule("test", []), lambda transport, _: job(transport))


def network(rank, layers=4):
    """A loss on this rank's data and its gradients."""
    x = nn.Variable.from_numpy_array(values(rank, (6, 8), np.float32))
    h = x
    for k in range(layers):
        h = F.tanh(PF.affine(h, 8, name=str(k)))
    return F.mean(h**2), [p.grad for p in nn.get_parameters().values()]
