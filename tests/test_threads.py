"""Ranges on several threads."""

from __future__ import annotations

import gc
import os
import threading
import weakref

import numpy as np
import pytest

import distnn as nn
from distnn.threads import parallel_for


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = nn.get_num_threads()
    nn.set_num_threads(request.param)
    yield request.param
    nn.set_num_threads(before)


@pytest.mark.parametrize(("length", "grain"), [(0, 1), (1, 4), (4, 4), (103, 10)])
def test_each_part_runs_once(threads, length, grain):
    parts = []
    parallel_for(lambda i, j: parts.append((i, j)), length, grain)
    starts = range(0, length, grain)
    assert sorted(parts) == [(i, min(i + grain, length)) for i in starts]


def test_ranges_inside_of_parts_run_in_line(threads):
    found = []

    def part(i, j):
        here = threading.get_ident()
        parallel_for(lambda k, m: found.append(here == threading.get_ident()), 8, 1)

    parallel_for(part, 8, 1)
    assert found == [True] * 64


def test_an_error_in_a_part_reaches_the_caller(threads):
    def part(i, j):
        if i == 3:
            raise ValueError("part 3")

    for _ in range(3):
        with pytest.raises(ValueError, match="part 3"):
            parallel_for(part, 8, 1)
    parallel_for(lambda i, j: None, 8, 1)


def test_threads_that_ask_at_once_all_get_their_results(threads):
    found = np.zeros((6, 400), np.int64)

    def ask(row):
        for _ in range(50):
            parallel_for(lambda i, j: np.add(row[i:j], 1, out=row[i:j]), len(row), 7)

    asking = [threading.Thread(target=ask, args=(row,)) for row in found]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert (found == 50).all()


def test_arrays_are_let_go_when_the_range_is_done(threads):
    class Array(np.ndarray):
        """An array that may be referred to weakly."""

    gc.disable()
    try:
        for _ in range(200):
            array = np.zeros(64).view(Array)
            alive = weakref.ref(array)
            parallel_for(lambda i, j, a=array: a[i:j].fill(1), 64, 4)
            del array
            assert alive() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_ranges_run_in_a_forked_process(threads):
    parallel_for(lambda i, j: None, 8, 1)
    child = os.fork()
    if child == 0:
        found = []
        parallel_for(lambda i, j: found.append(i), 8, 1)
        os._exit(0 if sorted(found) == [*range(8)] else 1)
    assert os.waitpid(child, 0)[1] == 0
