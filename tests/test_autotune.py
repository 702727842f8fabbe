"""Choices by timing: made once, kept on disk, rank 0's on all ranks. tests/test_cuda_convolution.py
has those of cuDNN."""

from __future__ import annotations

import logging
import sys
import time

import numpy as np
import pytest
from ranks import TRANSPORTS, connected, on_ranks

import distnn as nn
import distnn.functions as F
from distnn import autotune
from distnn.functions import convolution_ways


def forget():
    """As in a new process."""
    autotune.choices.clear()
    autotune._loaded = False


@pytest.fixture(autouse=True)
def alone(on_cpu, monkeypatch, tmp_path):
    monkeypatch.setattr(autotune, "file", lambda: tmp_path / "folder" / "autotune.json")
    forget()
    yield
    nn.set_autotune(False)
    forget()


@pytest.fixture
def timed(monkeypatch):
    """The candidates of each choice; the last of them is taken to be the fastest."""
    asked = []

    def least_time(candidates):
        asked.append(list(candidates))
        for run in candidates.values():
            run()
        return asked[-1][-1]

    monkeypatch.setattr(autotune, "least_time", least_time)
    return asked


@pytest.fixture
def made(monkeypatch):
    """Names of the ways that convolutions take."""
    names = []
    original = convolution_ways.fastest_way

    def noted(*arguments):
        names.append(original(*arguments))
        return names[-1]

    module = sys.modules["distnn.functions.convolution"]
    monkeypatch.setattr(module, "fastest_way", noted)
    return names


def convolved(dynamic=False, channels=16):
    """Bits of a 3x3 convolution and its gradients; several ways can compute it."""
    rng = np.random.RandomState(0)
    x, w = (
        nn.Variable.from_numpy_array(rng.randn(*s).astype(np.float32), need_grad=True)
        for s in ((4, channels, 12, 12), (16, channels, 3, 3))
    )
    with nn.auto_forward(dynamic):
        y = F.convolution(x, w, pad=(1, 1))
    y.forward()
    y.backward(1)
    return [a.tobytes() for a in (y.d, x.g, w.g)]


def test_nothing_is_timed_unless_that_is_asked_for(timed, made):
    convolved()
    assert timed == []
    assert autotune.get_autotune_choices() == {}
    assert len(set(made)) == 1


def test_the_fastest_is_found():
    pause = {"a": 0.01, "b": 0.0, "c": 0.02}
    runs = []

    def run(name):
        runs.append(name)
        time.sleep(pause[name])

    assert autotune.least_time({name: lambda name=name: run(name) for name in pause}) == "b"
    assert runs == ["a", "b", "c"] * 4  # in turns, and once before


def test_a_candidate_without_memory_is_passed_over():
    def fail():
        raise MemoryError

    assert autotune.least_time({"large": fail, "slow": lambda: time.sleep(0.001)}) == "slow"


def test_without_memory_to_try_the_expected_way_is_taken(timed, made, monkeypatch):
    convolved()

    class Poor:
        def standard_normal(self, *arguments):
            raise MemoryError

    monkeypatch.setattr(convolution_ways.np.random, "default_rng", lambda seed: Poor())
    nn.set_autotune(True)
    convolved()
    assert len({*made}) == 1
    assert timed == []


def test_a_choice_is_made_once_for_forward_and_backward_in_every_mode(timed, made):
    usual = convolved()
    nn.set_autotune(True)
    static = convolved()
    ((*others, last),) = timed
    assert others
    assert set(made[-2:]) == {last}
    assert convolved(dynamic=True) == static == convolved()
    assert len(timed) == 1
    assert static != usual
    ((configuration, name),) = nn.get_autotune_choices().items()
    assert name == last
    for part in ("convolution, float32, x (4, 16, 12, 12), w (16, 16, 3, 3), pad (1, 1)", last):
        assert part in configuration
    convolved(channels=17)
    assert len(timed) == 2
    nn.set_autotune(False)
    assert convolved() == static  # what was chosen stays


def test_choices_do_not_depend_on_the_number_of_threads(timed):
    nn.set_autotune(True)
    found = convolved()
    before = nn.get_num_threads()
    try:
        nn.set_num_threads(before + 1)
        assert convolved() == found
    finally:
        nn.set_num_threads(before)
    assert len(timed) == 1


def test_choices_are_kept_on_disk_beside_those_of_others(timed):
    nn.set_autotune(True)
    found = convolved()
    forget()
    assert convolved() == found
    assert len(timed) == 1
    # Two processes that know nothing of each other.
    forget()
    autotune._loaded = True
    convolved(channels=17)
    forget()
    assert len(nn.get_autotune_choices()) == 2
    # Who does not autotune does not look there.
    forget()
    nn.set_autotune(False)
    assert nn.get_autotune_choices() == {}


@pytest.mark.parametrize("text", ["{", "[1, 2]", "7"])
def test_a_broken_file_is_passed_over_and_written_anew(timed, caplog, text):
    autotune.file().parent.mkdir()
    autotune.file().write_text(text)
    nn.set_autotune(True)
    with caplog.at_level(logging.WARNING, "distnn"):
        convolved()
    assert "[autotune]" in caplog.text
    forget()
    assert len(nn.get_autotune_choices()) == len(timed) == 1


def test_where_nothing_can_be_kept_it_is_chosen_nevertheless(timed, caplog):
    autotune.file().parent.touch()  # a file where the folder should be
    nn.set_autotune(True)
    with caplog.at_level(logging.INFO, "distnn"):
        convolved()
    assert "choices are not kept" in caplog.text
    assert len(nn.get_autotune_choices()) == 1


def test_names_that_are_not_known_are_passed_over(timed, made):
    nn.set_autotune(True)
    convolved()
    ((configuration, _),) = nn.get_autotune_choices().items()
    nn.set_autotune(False)
    usual = made[0]
    nn.set_autotune_choices({configuration: "abacus"})
    made.clear()
    convolved()
    assert {*made} == {timed[0][0]}
    assert usual == timed[0][-1]


@pytest.mark.parametrize("transport", TRANSPORTS[1:])
def test_the_choices_of_rank_0_hold_and_ranks_time_nothing(transport, timed):
    if transport != "mpi":
        autotune.choices["somewhere"] = "chosen by rank 0"
    nn.set_autotune(True)

    def work():
        if transport == "mpi":
            from mpi4py import MPI

            rank = MPI.COMM_WORLD.rank
            autotune.choices["somewhere"] = f"chosen by rank {rank}"
            if rank:
                autotune.choices["elsewhere"] = "too"
        connected()
        assert nn.get_autotune_choices() == {"somewhere": "chosen by rank 0"}
        return convolved()

    found = on_ranks(transport, work)
    assert all(f == found[0] for f in found)
    assert timed == []
