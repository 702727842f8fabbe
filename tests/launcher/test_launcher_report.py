"""What supervisors say, and what the launcher makes of it in the end."""

from __future__ import annotations

import socket
import time

import pytest

from distnn.launcher import protocol
from distnn.launcher.ledger import Ledger
from distnn.launcher.report import Failure, first, ranks_text, text_of
from distnn.launcher.server import Connection

HERE = socket.gethostname()


def test_the_failure_that_began_first_is_the_one_reported():
    failures = [Failure(0, HERE, 10.2, 1), Failure(2, HERE, 10.1, 3), Failure(1, HERE, 10.3, 143)]
    assert first(failures).rank == 2


def test_a_report_is_a_header_and_the_traceback():
    failure = Failure(2, HERE, 0, 3, traceback="Traceback ...\nValueError: x\n", tail="noise")
    assert text_of(failure) == "rank 2 failed first (exit status 3):\nTraceback ...\nValueError: x"


def test_a_report_names_a_host_that_is_not_this_one():
    failure = Failure(2, "node7", 0, 1, traceback="Traceback")
    assert text_of(failure).startswith("rank 2 on node7 failed first (exit status 1):\n")


@pytest.mark.parametrize(
    ("number", "name"), [(9, "SIGKILL"), (11, "SIGSEGV"), (15, "SIGTERM"), (99, "signal 99")]
)
def test_a_rank_that_was_killed_is_reported_with_the_signal(number, name):
    text = text_of(Failure(0, HERE, 0, 128 + number, signal=number, tail="a\nlast words\n"))
    assert text.startswith(f"rank 0 failed first (killed by {name}, exit status {128 + number}):\n")
    assert text.endswith("its last lines on stderr:\na\nlast words")


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        ([3], "rank 3"),
        ([1, 0], "ranks 0-1"),
        ([0, 2, 3, 4, 9], "ranks 0, 2-4, 9"),
        ([], "rank none"),
    ],
)
def test_many_ranks_are_written_short(ranks, text):
    assert ranks_text(ranks) == text


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_messages_survive_being_cut_anywhere(step):
    sent = [(protocol.OUT, b""), (protocol.ERR, b"x" * 300), (protocol.OUT, b"\0\xff\n")]
    stream = b"".join(protocol.frame(kind, payload) for kind, payload in sent)
    frames = protocol.Frames()
    found = []
    for begin in range(0, len(stream), step):
        found += frames.feed(stream[begin : begin + step])
    assert found == sent


def ended(ledger: Ledger, rank: int, **account) -> None:
    connection = Connection(socket.socket(), rank, HERE)
    connection.socket.close()
    facts = {"time": 1.0, "status": 0, "signal": 0, "tail": "", "finished": True, **account}
    ledger.ended(connection, facts)


def test_ranks_that_come_to_their_end_are_no_failures():
    ledger = Ledger(2)
    ended(ledger, 0)
    assert ledger.unfinished == {1}
    ended(ledger, 1)
    ledger.look(time.monotonic() + 60)
    assert not ledger.unfinished
    assert not ledger.failures


def test_ranks_that_all_leave_by_os_exit_0_are_no_failures():
    ledger = Ledger(2)
    ended(ledger, 0, finished=False)
    ledger.look(time.monotonic() + 1)
    assert not ledger.failures
    ended(ledger, 1, finished=False)
    ledger.look(time.monotonic() + 60)
    assert not ledger.failures


def test_a_rank_that_leaves_the_others_by_os_exit_0_has_failed():
    ledger = Ledger(3)
    ended(ledger, 1, finished=False)
    ledger.look(time.monotonic() + 3)
    assert "os._exit(0)" in ledger.failures[1].traceback
    assert "ranks 0, 2 had not ended" in ledger.failures[1].traceback


def test_a_traceback_is_kept_when_the_end_of_its_process_is_told():
    ledger = Ledger(1)
    connection = Connection(socket.socket(), 0, HERE)
    connection.socket.close()
    ledger.failed(connection, {"time": 1.0, "status": 1, "traceback": "Traceback"})
    ended(ledger, 0, time=2.0, status=1, finished=False, tail="words")
    assert ledger.failures[0] == Failure(0, HERE, 1.0, 1, traceback="Traceback", tail="words")
