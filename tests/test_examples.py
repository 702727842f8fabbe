"""The programs in examples/ run, and show what they are there to show."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import distnn as nn

pytest.importorskip("sklearn", reason="examples need distnn[examples]")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.parametrize("type_config", ["float", "double"])
def test_static_and_dynamic_training_give_the_same_bits(extension, type_config, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="plots need distnn[examples]")
    import static_vs_dynamic

    files = ["--json", str(tmp_path / "run.json"), "--plot", str(tmp_path / "run.png")]
    shape = ["--depth", "2", "--width-scale", "0.1", "--epochs", "2", "--batch-size", "128"]
    where = ["-c", extension, "-d", "0", "-t", type_config]
    static, dynamic = static_vs_dynamic.main([*shape, *files, *where])
    assert static.losses == dynamic.losses
    assert static.means()[1] < static.means()[0]
    printed = capsys.readouterr().out
    assert re.search(r"static: \[ 0 \d\.\d+ 14 \] \[ 1 ", printed)
    assert "bit-identical" in printed
    settings = json.loads((tmp_path / "run.json").read_text())["settings"]
    assert (settings["depth"], settings["type_config"]) == (2, type_config)
    assert nn.get_current_context().backend == [f"{extension}:{type_config}"]
    assert (tmp_path / "run.png").stat().st_size > 5000


def test_stochastic_depth_keeps_the_state_of_layers_that_come_and_go(extension):
    import static_vs_dynamic

    options = ["--mode", "dynamic", "--stochastic-depth", "0.5", "--depth", "4", "--epochs", "1"]
    (curve,) = static_vs_dynamic.main([*options, "--width-scale", "0.1", "-c", extension])
    assert np.all(np.isfinite(curve.losses[0]))
    assert sum("conv/W" in name for name in nn.get_parameters()) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stochastic-depth", "0.5"], "use --mode dynamic"),
        (["--mode", "both", "--depth", "x"], "invalid int value"),
        (["-c", "tpu"], "choose from"),
        (["-t", "quarter"], "choose from"),
    ],
)
def test_wrong_options_are_explained(arguments, message, capsys):
    import static_vs_dynamic

    with pytest.raises(SystemExit):
        static_vs_dynamic.parse(arguments)
    assert message in capsys.readouterr().err


def test_data_parallel_training_runs_on_one_process(extension, capsys):
    import digits_data_parallel

    digits_data_parallel.main(["--epochs", "2", "-c", extension])
    assert "parameters of all ranks are identical" in capsys.readouterr().out


@pytest.mark.parametrize("exchange", ["callback", "all_reduce"])
def test_data_parallel_training_runs_under_the_launcher(exchange):
    pytest.importorskip("mpi4py", reason="MPI runs need distnn[mpi]")
    command = [sys.executable, "-m", "distnn.launcher", "-n", "2", "--timeout", "120"]
    script = [str(EXAMPLES / "digits_data_parallel.py"), "--epochs", "2", "--exchange", exchange]
    run = subprocess.run([*command, *script], capture_output=True, text=True, timeout=150)
    assert run.returncode == 0, run.stderr
    assert "on 2 rank(s); parameters of all ranks are identical" in run.stdout
    assert run.stdout.count("epoch  2/2") == 1  # rank 0 reports
