"""Output of many ranks on one terminal."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from distnn.launcher.output import Lines


def shown(*pieces, lines=None):
    """Lines that come of (time, bytes); bytes None: only time passes."""
    lines = lines or Lines()
    found = []
    for now, data in pieces:
        found += lines.due(now) if data is None else lines.feed(data, now)
    return found


def test_a_line_appears_when_it_is_complete():
    lines = Lines()
    assert shown((0, b"one\ntw"), lines=lines) == [b"one"]
    assert shown((0.1, b"o\nthree"), lines=lines) == [b"two"]
    assert list(lines.rest()) == [b"three"]
    assert list(lines.rest()) == []


def test_empty_lines_stay():
    assert shown((0, b"a\n\n\nb\n")) == [b"a", b"", b"", b"b"]


def test_windows_line_ends_are_line_ends():
    assert shown((0, b"a\r\nb\r\n")) == [b"a", b"b"]


def test_text_that_waits_for_its_line_end_appears_after_two_seconds():
    assert shown((0, b"Name: "), (1.9, None)) == []
    assert shown((0, b"Name: "), (2.1, None), (3, b"\n"), (3, b"x\n")) == [b"Name: ", b"x"]


def test_a_progress_bar_appears_every_two_seconds_and_in_its_last_state():
    pieces = []
    for step in range(100):  # ten states a second
        pieces += [(step / 10, b"\r%d %%" % step), (step / 10, None)]
    assert shown(*pieces, (10, b"\n")) == [b"20 %", b"40 %", b"60 %", b"80 %", b"99 %"]


def test_the_last_state_of_a_progress_bar_is_not_shown_twice():
    assert shown((0, b"\r50 %"), (2, None), (9, None), (10, b"\n")) == [b"50 %"]


def test_a_progress_bar_that_wipes_itself_leaves_the_text_after_it():
    assert shown((0, b"\r50 %\r     \rdone\n")) == [b"done"]


def test_text_without_any_line_end_is_not_kept_for_ever():
    lines = Lines()
    found = b"".join(shown(*[(0, b"x" * 65536)] * 40, lines=lines))
    assert len(found) > 65536 * 20
    assert len(found + b"".join(lines.rest())) == 65536 * 40


_TWO_RANKS = """
from distnn.launcher.output import Output
output = Output()
output.feed(0, 1, b"a\\n", 0.0)
output.feed(1, 1, b"b\\n", 0.0)
output.feed(1, 2, b"c\\n", 0.0)
"""


def on_terminal(**environment) -> bytes:
    """stdout of a process whose stdout is a terminal, and stderr a file."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    clean = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    run = subprocess.run(
        [sys.executable, "-c", _TWO_RANKS],
        env={**clean, **environment},
        stdout=theirs,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    text = os.read(ours, 4096)
    os.close(ours)
    assert run.stderr == b"[r1] c\n"
    return text


def test_prefixes_are_coloured_on_a_terminal_and_only_there():
    first, second, _ = on_terminal().split(b"\r\n")
    assert first.endswith(b"[r0] \x1b[0ma")
    assert second.endswith(b"[r1] \x1b[0mb")
    assert first[:5] != second[:5]
    assert on_terminal(NO_COLOR="1") == b"[r0] a\r\n[r1] b\r\n"
