"""The prefetch thread: where it runs, what it does ahead, and how it ends."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextvars import ContextVar

import numpy as np
import pytest

import distnn as nn
from distnn.data import data_iterator_simple, prefetch
from distnn.errors import ContextError

SECONDS = 10.0  # how long to wait for what should happen at once


def threads():
    return [t for t in threading.enumerate() if t.name == "distnn-prefetch"]


def wait_until(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def _every_thread_ends():
    gc.collect()
    wait_until(lambda: not threads())
    yield
    gc.collect()
    wait_until(lambda: not threads())


class Recorder:
    """A load function that records the samples loaded and their thread."""

    def __init__(self):
        self.loaded = []
        self.threads = set()

    def __call__(self, i):
        self.loaded.append(i)
        self.threads.add(threading.current_thread().name)
        return (i,)


def test_the_next_batch_is_loaded_while_the_user_has_this_one():
    load = Recorder()
    with data_iterator_simple(load, 12, 4) as iterator:
        load.loaded.clear()
        iterator.next()
        wait_until(lambda: len(load.loaded) == 8)
        time.sleep(0.05)
        assert load.loaded == list(range(8))  # one batch ahead, not more


def test_samples_are_loaded_in_a_thread_of_their_own():
    load = Recorder()
    with data_iterator_simple(load, 12, 4) as iterator:
        load.threads.clear()
        iterator.next()
    assert load.threads == {"distnn-prefetch"}


def test_without_thread_samples_are_loaded_in_the_callers():
    load = Recorder()
    with data_iterator_simple(load, 12, 4, use_thread=False) as iterator:
        iterator.next()
        assert threads() == []
    assert load.threads == {threading.current_thread().name}
    assert load.loaded[1:] == [0, 1, 2, 3]


def test_the_thread_runs_in_the_context_of_its_creator():
    variable = ContextVar("variable", default="default")
    seen = []

    def load(i):
        seen.append((variable.get(), *nn.get_current_context().backend))
        return (i,)

    token = variable.set("creator's")
    with nn.context_scope(nn.Context(["cpu:double"])):
        iterator = data_iterator_simple(load, 4, 2)
    variable.reset(token)
    seen.clear()
    with iterator:
        iterator.next()
    assert set(seen) == {("creator's", "cpu:double")}


def test_closing_ends_the_thread():
    iterator = data_iterator_simple(Recorder(), 4, 2)
    iterator.next()
    assert len(threads()) == 1
    iterator.close()
    assert threads() == []


def test_an_iterator_that_is_no_longer_used_is_collected_and_its_thread_ends():
    iterator = data_iterator_simple(Recorder(), 4, 2)
    iterator.next()
    reference = weakref.ref(iterator)
    del iterator
    assert reference() is None  # at once: neither thread nor cycle refers to it
    wait_until(lambda: not threads())


def test_an_iterator_in_a_cycle_is_collected_and_its_thread_ends():
    class Trainer:
        def __init__(self):
            self.iterator = data_iterator_simple(Recorder(), 4, 2)
            self.iterator.register_epoch_end_callback(self.end_epoch)

        def end_epoch(self, epoch):
            pass

    trainer = Trainer()
    trainer.iterator.next()
    reference = weakref.ref(trainer.iterator)
    del trainer
    gc.collect()
    assert reference() is None
    wait_until(lambda: not threads())


def test_an_iterator_is_collected_while_a_sample_is_being_loaded():
    started, go_on = threading.Event(), threading.Event()

    def load(i):
        if i == 2:
            started.set()
            go_on.wait(SECONDS)
        return (i,)

    iterator = data_iterator_simple(load, 8, 2)
    iterator.next()
    started.wait(SECONDS)
    threading.Timer(0.05, go_on.set).start()
    reference = weakref.ref(iterator)
    del iterator
    assert reference() is None
    assert threads() == []


def test_closing_does_not_wait_for_the_rest_of_the_batch():
    started, loaded = threading.Event(), []

    def load(i):
        loaded.append(i)
        if i >= 1000:
            started.set()
            time.sleep(0.01)
        return (i,)

    iterator = data_iterator_simple(load, 2000, 1000)
    iterator.next()
    started.wait(SECONDS)
    iterator.close()
    assert threads() == []
    assert loaded[-1] < 1990


def test_closing_gives_up_on_a_sample_that_takes_too_long(monkeypatch, caplog):
    monkeypatch.setattr(prefetch, "PATIENCE", 0.05)
    started, go_on = threading.Event(), threading.Event()

    def load(i):
        if i == 2:
            started.set()
            go_on.wait(SECONDS)
        return (i,)

    iterator = data_iterator_simple(load, 8, 2)
    iterator.next()
    started.wait(SECONDS)
    iterator.close()
    assert "loading a sample takes longer than 0.05 s" in caplog.text
    go_on.set()


def test_an_exception_keeps_neither_iterator_nor_thread_alive():
    def load(i):
        if i == 3:
            raise OSError("lost")
        return (i,)

    iterator = data_iterator_simple(load, 4, 2)
    iterator.next()
    with pytest.raises(OSError, match="lost"):
        iterator.next()
    reference = weakref.ref(iterator)
    del iterator
    gc.collect()
    assert reference() is None
    wait_until(lambda: not threads())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, StopIteration, GeneratorExit])
def test_no_exception_of_the_load_function_is_lost(error):
    def load(i):
        if i == 1:
            raise error("from load")
        return (i,)

    with data_iterator_simple(load, 4, 2) as iterator, pytest.raises(error, match="from load"):
        iterator.next()


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signal.pthread_kill")
def test_an_interrupt_while_waiting_loses_no_batch():
    go_on = threading.Event()

    def load(i):
        if i == 2:
            go_on.wait(SECONDS)
        return (i,)

    with data_iterator_simple(load, 8, 2) as iterator:
        iterator.next()
        main = threading.get_ident()
        threading.Timer(0.1, signal.pthread_kill, [main, signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            iterator.next()
        go_on.set()
        assert iterator.next()[0].tolist() == [2, 3]
        assert iterator.next()[0].tolist() == [4, 5]


def test_a_batch_that_failed_ahead_is_reported_when_it_is_asked_for():
    def load(i):
        if i == 3:
            raise OSError("lost")
        return (i,)

    with data_iterator_simple(load, 4, 2) as iterator:
        assert iterator.next()[0].tolist() == [0, 1]
        time.sleep(0.05)
        with pytest.raises(OSError, match="lost"):
            iterator.next()


def test_the_batch_handed_out_is_not_touched_again():
    with data_iterator_simple(lambda i: (np.full(3, i),), 8, 2) as iterator:
        first = iterator.next()[0]
        first[...] = -1
        second = iterator.next()[0]
        iterator.next()
    assert first.tolist() == [[-1] * 3] * 2
    assert second.tolist() == [[2] * 3, [3] * 3]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_gets_an_error_instead_of_waiting():
    with data_iterator_simple(Recorder(), 4, 2) as iterator:
        iterator.next()
        child = os.fork()
        if child == 0:
            try:
                iterator.next()
            except ContextError as error:
                os._exit(0 if "make the iterator in the process" in str(error) else 2)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0


# -- the end of the program -------------------------------------------------------------------

PROGRAM = """
import sys, threading, time
from distnn.data import data_iterator_simple

started = threading.Event()

def load(i):
    {load}
    return (i,)

iterator = data_iterator_simple(load, 100, 10)
iterator.next()
{end}
"""


@pytest.mark.parametrize(
    ("load", "end", "code"),
    [
        ("pass", "pass", 0),
        ("pass", "sys.exit(3)", 3),
        ("pass", "iterator.close()", 0),
        ("time.sleep(0.01)", "pass", 0),
        ("if i == 15: raise OSError('never asked for')", "time.sleep(0.05)", 0),
        ("pass", "keep = [iterator]; keep.append(keep); del iterator", 0),
    ],
    ids=["idle", "exit code", "closed", "loading", "failed ahead", "cycle"],
)
def test_a_program_ends_at_once_and_silently(load, end, code):
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM.format(load=load, end=end)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (found.returncode, found.stderr) == (code, "")


def test_a_program_ends_although_a_load_function_never_returns():
    end = "import distnn.data.prefetch as p; p.PATIENCE = 0.1; started.wait()"
    load = "if i == 15: started.set(); threading.Event().wait()"
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(load=load, end=end)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 0
    assert "loading a sample takes longer than 0.1 s" in found.stderr
