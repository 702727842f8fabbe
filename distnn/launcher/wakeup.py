"""Wakes a loop that waits in `select` when a signal comes."""

from __future__ import annotations

import os
import selectors
import signal


def wake_on_signals(selector: selectors.BaseSelector) -> int:
    """Register a file with `selector` that is readable after every signal; returns its number.

    SIGCHLD is among them: the end of a child wakes the loop.
    """
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    selector.register(read, selectors.EVENT_READ)
    return read
