"""Arenas: no two arrays overlap that live at once, little is wasted; what plans say they need."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF
from distnn.arena import ALIGNMENT, Span, live_bytes, offsets
from distnn.context import World, current_backend, world_scope
from distnn.errors import GraphError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import networks

_SPAN = st.tuples(st.integers(0, 3000), st.integers(0, 12), st.integers(0, 6))


@settings(max_examples=200, deadline=None)
@given(st.lists(_SPAN, max_size=30))
def test_arrays_that_live_at_once_do_not_overlap(found):
    spans = [Span(nbytes, first, first + length) for nbytes, first, length in found]
    starts = offsets(spans)
    for i, (a, start) in enumerate(zip(spans, starts, strict=True)):
        assert start >= 0
        assert start % ALIGNMENT == 0
        for b, other in zip(spans[:i], starts[:i], strict=True):
            if a.first <= b.last and b.first <= a.last:
                assert start + a.nbytes <= other or other + b.nbytes <= start


@settings(max_examples=50, deadline=None)
@given(st.lists(_SPAN, max_size=30))
def test_live_bytes_are_those_of_each_step(found):
    spans = [Span(nbytes * ALIGNMENT, first, first + length) for nbytes, first, length in found]
    for step, live in enumerate(live_bytes(spans, 20)):
        assert live == sum(s.nbytes for s in spans if s.first <= step <= s.last)


@pytest.mark.parametrize(
    "network",
    [
        lambda: networks.seed(depth=8, batch=64),
        lambda: networks.resnet50(4, 64, (3, 4, 6, 3), 16, channel_last=False),
        lambda: networks.transformer(4, 64, 4, 4, 64, 1000),
    ],
    ids=["seed", "resnet", "transformer"],
)
def test_arenas_are_within_a_tenth_of_what_lives_at_once(network):
    with world_scope(World()):
        network = network()
        x, t = (nn.Variable(array.shape) for array in network.batch())
        report = nn.profiler.memory(network.ours(x, t))
    assert report.lower_bound <= report.planned <= 1.1 * report.lower_bound
    assert report.planned < 0.6 * report.sum_without_reuse


def mlp(x, block):
    h = x
    for i in range(6):
        with block():
            h = PF.affine(F.tanh(h) * 1.5, 256, name=f"a{i}")
        h = F.sigmoid(h)
    return h


@pytest.mark.parametrize("block", [nullcontext, nn.recompute])
@pytest.mark.parametrize("flags", [{"clear_no_need_grad": True}, {"clear_buffer": True}, {}])
def test_the_predicted_peak_is_the_real_one(block, flags):
    if current_backend().name != "cpu":
        pytest.skip("the peak of the host's pool is measured: for --device cpu")
    nn.clear_parameters()
    x = nn.Variable((512, 256))
    x.d = np.random.RandomState(0).randn(*x.shape)
    loss = mlp(x, block)
    report = nn.profiler.memory(loss, **{"clear_no_need_grad": False, **flags})
    for _ in range(3):
        for p in nn.get_parameters().values():
            p.grad.zero()
        loss.data.clear()  # the result of the round before
        with nn.profiler.peak_memory() as peak:
            loss.forward(**flags)
            if not flags.get("clear_buffer"):
                loss.backward(clear_buffer=True)
    assert peak.bytes == pytest.approx(report.lower_bound, rel=0.02)
    if flags == {"clear_no_need_grad": True}:
        # Of a block tanh and the product; nobody reads the affine map's result in backward.
        assert report.computed_again == (12 if block is nn.recompute else 0)


def test_what_is_computed_again_is_not_kept():
    nn.clear_parameters()
    x = nn.Variable((512, 256))
    kept = [nn.profiler.memory(mlp(x, block)) for block in (nullcontext, nn.recompute)]
    assert kept[1].kept < 0.6 * kept[0].kept
    assert kept[1].lower_bound < 0.8 * kept[0].lower_bound
    assert "kept for backward" in str(kept[1])


@pytest.mark.parametrize("clear_buffer", [True, False])
def test_where_no_leaf_needs_a_gradient_there_is_only_forward(clear_buffer):
    y = F.sum(F.tanh(nn.Variable((64, 64))))
    report = nn.profiler.memory(y, clear_buffer)
    assert report.peak_step.startswith("forward")
    y.forward()
    with pytest.raises(GraphError, match="no gradient comes through"):
        y.backward(clear_buffer=True)
    assert nn.profiler.plan_stats()["planned_bytes"] >= 0


def test_a_leaf_needs_no_memory_plan():
    with pytest.raises(GraphError, match=r"\[memory\]"):
        nn.profiler.memory(nn.Variable((2, 3)))
