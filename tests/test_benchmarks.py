"""What benchmark scripts compute from their measurements; the measurements are not tested."""

from __future__ import annotations

import doctest
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import bench_allreduce
import bench_scaling
import jobs


@pytest.mark.parametrize("module", [bench_allreduce, bench_scaling])
def test_examples_in_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize(
    ("ready", "durations", "end"),
    [
        ([], [], 0),
        ([5], [2], 7),
        ([1, 1, 1], [2, 2, 2], 7),  # bound by communication
        ([1, 5, 9], [2, 2, 2], 11),  # bound by computation
        ([1, 2, 20, 21], [4, 4, 1, 3], 24),
    ],
)
def test_buckets_wait_for_their_gradients_and_for_each_other(ready, durations, end):
    assert bench_allreduce.chain(ready, durations) == end


def test_gates_are_judged_on_what_was_measured():
    report = {
        "over_best_chunked": 1.2,
        "plain_over_ours": 1.9,
        "accelerator_hidden": 0.74,
        "python_prediction_error": 0.05,
    }
    passed = {
        "over_best_chunked": False,
        "plain_over_ours": True,
        "accelerator_hidden": False,
        "python_prediction_error": True,
    }
    assert bench_allreduce.gates(report) == passed


@pytest.mark.parametrize(
    ("mode", "seconds", "expected"),
    [
        ("weak", {1: 2.0, 2: 2.0, 4: 4.0}, {1: 1, 2: 1, 4: 0.5}),
        ("strong", {1: 2.0, 2: 1.0, 4: 1.0}, {1: 1, 2: 1, 4: 0.5}),
        ("weak", {2: 1.0, 4: 1.25}, {2: 1, 4: 0.8}),
        ("strong", {2: 1.0, 4: 0.625}, {2: 1, 4: 0.8}),
    ],
)
def test_efficiency(mode, seconds, expected):
    assert bench_scaling.efficiency(seconds, mode) == pytest.approx(expected)


def row(ranks, efficiency):
    shares = dict.fromkeys((*bench_scaling.PHASES, "hidden"), 0.125)
    return {
        "ranks": ranks,
        "step_seconds": 0.25,
        "throughput": 1000.0 * ranks,
        "efficiency": efficiency,
        "shares": shares,
    }


def test_the_table_gives_no_efficiency_where_ranks_share_cores():
    lines = bench_scaling.table([row(1, 1.0), row(2, 0.91), row(4, 0.4)], 2).splitlines()
    cells = [line.split() for line in lines[1:4]]
    assert [found[:4] for found in cells] == [
        ["1", "250.0", "1000", "1.00"],
        ["2", "250.0", "2000", "0.91"],
        ["4", "250.0", "4000", "-"],
    ]
    assert cells[0][4:] == ["12.5%"] * 5
    assert "not meaningful with more ranks than cores: this machine has 2" in lines[-1]
    assert "not meaningful" not in bench_scaling.table([row(1, 1.0), row(2, 0.9)], 2)


def test_the_plot_is_a_file(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = tmp_path / "plot.png"
    bench_scaling.plot([row(1, 1.0), row(4, 0.4)], 2, "title", str(path))
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_reports_have_four_digits():
    assert jobs.rounded({"a": 1.23456, "b": [1e-9 / 3], "c": 12345, "d": "x"}) == {
        "a": 1.235,
        "b": [3.333e-10],
        "c": 12345,
        "d": "x",
    }
