"""scripts/bench_gpu.py with tiny networks on the CPU: what it compares, and what it says."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import distnn as nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import bench_gpu
import networks
import trainers

SCRIPTS = Path(bench_gpu.__file__).parent
ROW = {
    "static_ms": 11.0,
    "dynamic_ms": 12.0,
    "torch_ms": 10.0,
    "static_over_torch": 1.1,
    "dynamic_over_static": 1.09,
    "same_bits": True,
    "gradient_error": 1e-4,
    "gradient_error_torch": 2e-4,
}
CASE = {"ms": 1.0, "torch_ms": 2.0, "gb_per_s": 3000.0, "of_copy": 0.75, "torch_of_copy": 0.4}
RUN = {
    "iterations": 210,
    "static_seconds": 2.5,
    "dynamic_seconds": 2.75,
    "static_loss": 1e-3,
    "dynamic_loss": 3e-3,
    "same_bits": False,
}


def test_a_row_shows_what_it_is_without_graphs():
    row = ROW | {
        "graphs": 2,
        "static_without_graphs_ms": 33.25,
        "dynamic_without_graphs_ms": 44.5,
        "same_bits_without_graphs": False,
    }
    *_, line = bench_gpu.table({"seed-tf32": row}).splitlines()
    assert line.split() == ["without", "its", "2", "CUDA", "graphs", "33.25", "44.50", "NO"]


@pytest.mark.parametrize("module", [bench_gpu, networks, trainers])
def test_examples_in_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


def test_contestants_take_turns_between_two_synchronizations():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "ab"}
    found = bench_gpu.alternate(steps, lambda: calls.append("|"), rounds=2, seconds=0.0)
    warm_up = "".join(f"|{name * bench_gpu.WARM_UP}||{name}|" for name in "ab")
    assert "".join(calls) == warm_up + "|a||b|" * 2
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 2, "b": 2}


def test_short_steps_are_repeated_until_a_round_is_long_enough(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(bench_gpu.time, "perf_counter", lambda: now[0])

    def step():
        now[0] += 0.25

    found = bench_gpu.alternate({"a": step}, lambda: None, rounds=3, seconds=1.0)
    assert found == {"a": [0.25] * 3}
    assert now[0] == 0.25 * (bench_gpu.WARM_UP + 1 + 3 * 4)


def test_gates_and_the_table_say_what_was_reached_and_what_failed():
    rows = {
        "seed-tf32": ROW,
        "resnet50-half": {"error": "OutOfMemoryError: 3 GB"},
        "kernels": {"cases": {"copy": CASE, "Adam": CASE}, "error": "softmax: wrong"},
        "experiment": RUN,
    }
    assert bench_gpu.gates(rows) == {
        "seed-tf32": True,
        "Adam": False,
        "experiment, seconds": True,
        "experiment, loss": False,
    }
    text = bench_gpu.table(rows)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "seed-tf32 10.00 11.00 12.00 1.10 1.09 yes 1.0e-04 2.0e-04" in lines
    assert "Adam 2.000 1.000 3000 75% 40%" in lines
    assert "NOT bit-identical" in text
    assert text.endswith("failed:\nresnet50-half: OutOfMemoryError: 3 GB\nkernels: softmax: wrong")


def test_a_row_ends_with_its_process_and_not_with_the_others(tmp_path, monkeypatch):
    program = tmp_path / "program.py"
    monkeypatch.setattr(bench_gpu, "__file__", str(program))
    program.write_text("import os; os.kill(os.getpid(), 9)")
    assert bench_gpu.run("kernels", [], 60) == {"error": "its process ended with status -9"}
    program.write_text("import time; time.sleep(60)")
    assert bench_gpu.run("kernels", [], 0.5) == {"error": "not done after 0 s"}
    assert bench_gpu.run("kernels", [], 0) == {"error": "not run: no time was left"}


def test_unknown_rows_are_explained(capsys):
    with pytest.raises(SystemExit):
        bench_gpu.main(["--rows", "seed-tf32,lstm"])
    assert "'lstm' is none of seed-float32" in capsys.readouterr().err


# -- beside PyTorch -------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is the peer: pip install torch==2.13.0")


def contestants(network, precision="float32", extension="cpu"):
    static, dynamic = (trainers.Ours(network, extension, precision, d) for d in (False, True))
    values, trained = static.parameters(), static.parameters(trained=True)
    peers = [trainers.Torch(network, values, trained, "cpu", p) for p in (precision, "double")]
    return [static, dynamic, *peers]


@pytest.mark.parametrize("precision", ["float32", "half"])
@pytest.mark.parametrize("kind", ["seed", "resnet50", "transformer", "lstm"])
def test_networks_and_their_updates_are_pytorchs(torch, kind, precision):
    if kind == "lstm" and precision == "half":
        pytest.skip("PyTorch's LSTM has no half precision on the CPU")
    small = {"lstm": lambda: networks.lstm(2, 8, 4, 5, 3)}
    network = (bench_gpu.TINY.networks | small)[kind]()
    static, dynamic, peer, exact = contestants(network, precision)
    before = static.parameters(trained=True)
    report = trainers.compared(static, peer, exact, precision)
    assert 1 < report["loss"] < 10
    _, gradients = exact.gradients()
    for contestant in (static, dynamic, peer):
        for _ in range(3):
            contestant.step()
    after, others = static.parameters(trained=True), dynamic.parameters(trained=True)
    assert all(np.array_equal(value, others[name]) for name, value in after.items())
    before, after = (networks.tensors_of(network, arrays) for arrays in (before, after))
    for name, value in after.items():
        if precision == "half" or name.endswith("conv/b"):  # whose gradient is but rounding
            continue
        # Adam moves a weight as far whether its gradient is large or but rounding.
        large = np.abs(gradients[name]) > 1e-3 * np.abs(gradients[name]).max()
        start = before[name][large]
        ours = value[large] - start
        theirs = peer.weights[name].detach().numpy()[large] - start
        assert np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(theirs), name


@pytest.fixture
def compiled(extension):
    """bfloat16 on the CPU needs compiled kernels."""
    before = nn.get_cpu_kernels()
    if extension == "cpu":
        pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")
        pytest.importorskip("ml_dtypes", reason="bfloat16 needs distnn[cpu]")
        nn.set_cpu_kernels("numba")
    yield
    nn.set_cpu_kernels(before)


@pytest.mark.parametrize("kind", ["seed", "resnet50", "transformer"])
def test_networks_in_bfloat16_are_about_as_exact_as_pytorchs(torch, kind, extension, compiled):
    network = bench_gpu.TINY.networks[kind]()
    static, dynamic, peer, exact = contestants(network, "bf16", extension)
    trainers.compared(static, peer, exact, "bf16")
    (loss, gradients), (same, others) = static.gradients(), dynamic.gradients()
    assert loss == same
    assert all(np.array_equal(gradients[name], others[name]) for name in gradients)


def test_layouts_of_images_are_one_network(torch):
    network = networks.resnet50(2, 32, (1, 1, 1, 1), 8, channel_last=False)
    static, _, peer, exact = contestants(network)
    trainers.compared(static, peer, exact, "float32")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda w, x, t: networks.seed_of_torch(w, x, (t + 1) % 10),
        lambda w, x, t: networks.seed_of_torch(w, x, t) * 1.001,
        lambda w, x, t: networks.seed_of_torch(w, x, t) / 0,
    ],
    ids=["labels", "0.1 %", "NaN"],
)
def test_a_wrong_network_is_not_timed(torch, wrong):
    network = bench_gpu.TINY.networks["seed"]()
    static, _, peer, exact = contestants(network)
    values, trained = static.parameters(), static.parameters(trained=True)
    ours = trainers.Torch(network._replace(peers=wrong), values, trained, "cpu", "float32")
    with pytest.raises(trainers.WrongNetworkError, match="do not compute the same"):
        trainers.compared(ours, peer, exact, "float32")


def test_the_script_runs_its_rows_and_reports(torch, tmp_path):
    path = tmp_path / "gpu.jsonl"
    command = [sys.executable, str(SCRIPTS / "bench_gpu.py"), "--device", "cpu"]
    command += ["--rows", "seed-float32,kernels,experiment", "--output", str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPTS.parent)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert run.returncode == 0, run.stderr
    report = json.loads(path.read_text())
    assert json.loads(run.stdout.splitlines()[-1]) == report
    assert list(report["rows"]) == ["seed-float32", "kernels", "experiment"]
    row = report["rows"]["seed-float32"]
    assert row["same_bits"]
    assert row["static_ms"] > 0
    cases = report["rows"]["kernels"]["cases"]
    assert len(cases) == 8
    assert cases["copy"]["torch_of_copy"] == 1
    assert report["rows"]["experiment"]["same_bits"]
    assert "batch normalization + relu, gradient" in run.stdout
