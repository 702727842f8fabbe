"""The seed network, shallow: the same bits in every mode, and as near to float64 as PyTorch."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F
import distnn.solvers as S

pytest.importorskip("sklearn", reason="the digits need distnn[examples]")
ROOT = Path(__file__).resolve().parent.parent
DEPTH, BATCH = 3, 64


@pytest.fixture
def digits(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from digits import load

    images, labels = load()
    return images[:BATCH], labels[:BATCH]


def losses(digits, dynamic, threads, steps=3):
    from static_vs_dynamic import cnn

    nn.clear_parameters()
    nn.seed(313)
    before = nn.get_num_threads()
    nn.set_num_threads(threads)
    try:
        x, t = nn.Variable((BATCH, 1, 8, 8)), nn.Variable((BATCH, 1))
        x.d, t.d = digits
        solver = S.Adam(1e-3)
        found = []
        for step in range(steps):
            if dynamic or step == 0:
                with nn.auto_forward(dynamic):
                    loss = F.mean(F.softmax_cross_entropy(cnn(x, DEPTH, 1.0, lambda i: False), t))
                solver.set_parameters(nn.get_parameters(), reset=False, retain_state=True)
            if not dynamic:
                loss.forward(clear_no_need_grad=True)
            solver.zero_grad()
            loss.backward(clear_buffer=True)
            solver.update()
            found.append(float(loss.d))
        parameters = {k: p.d.copy() for k, p in nn.get_parameters(grad_only=False).items()}
        return found, parameters
    finally:
        nn.set_num_threads(before)


@pytest.fixture(params=["numpy", "numba"])
def kernels(request, extension):
    """Both sorts of kernels of the CPU."""
    if extension != "cpu" and request.param == "numba":
        pytest.skip("a device has kernels of its own")
    if request.param == "numba":
        pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")
    before = nn.get_cpu_kernels()
    nn.set_cpu_kernels(request.param)
    yield
    nn.set_cpu_kernels(before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dynamic", [False, True])
def test_mode_and_threads_change_no_bit(digits, kernels, dynamic, threads):
    expected, parameters = losses(digits, False, 1)
    found, others = losses(digits, dynamic, threads)
    assert found == expected
    assert parameters.keys() == others.keys()
    for k, p in parameters.items():
        assert np.array_equal(p, others[k]), k


def test_the_first_step_is_as_near_to_float64_as_pytorchs(digits, kernels, monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is the peer: pip install torch==2.13.0")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import bench_seed

    monkeypatch.setattr(bench_seed, "BATCH", BATCH)
    errors = bench_seed.accuracy_of_the_first_step(DEPTH)
    sys.modules.pop("bench_seed")
    assert errors["loss_error"] < 1e-6
    assert errors["gradient_error_worst_ratio"] < 3


def test_the_first_step_in_bfloat16_is_as_near_to_float64_as_pytorchs(digits, monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is the peer: pip install torch==2.13.0")
    pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")
    pytest.importorskip("ml_dtypes", reason="bfloat16 needs distnn[cpu]")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import bench_seed

    monkeypatch.setattr(bench_seed, "BATCH", BATCH)
    before = nn.get_cpu_kernels()
    nn.set_cpu_kernels("numba")
    try:
        errors = bench_seed.accuracy_of_the_first_step(DEPTH, "bf16")
    finally:
        nn.set_cpu_kernels(before)
        sys.modules.pop("bench_seed")
    # A loss of 2.3 has a distance of 2**-6 to the next number of bfloat16.
    assert errors["loss_error"] < 2.0**-6
    assert errors["gradient_error_median"] < 1.5 * errors["gradient_error_median_torch"]
    assert errors["gradient_error_worst_ratio"] < 3
