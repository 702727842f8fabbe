"""What the launcher says at the end: which rank failed first, how, and with which traceback."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterable
from dataclasses import dataclass

_TAIL_LINES = 40


@dataclass
class Failure:
    """How one rank failed, in the words of its supervisor."""

    rank: int
    host: str
    time: float  # seconds since the epoch, by the clock of `host`
    status: int
    signal: int = 0
    exception: str = ""
    traceback: str = ""
    where: str = ""
    tail: str = ""  # the last that it wrote to stderr


def first(failures: Iterable[Failure]) -> Failure:
    """The failure that began before the others, the cause of theirs as a rule."""
    return min(failures, key=lambda failure: (failure.time, failure.rank))


def text_of(failure: Failure) -> str:
    """The last words of a job that failed: a header, then the traceback or the best there is."""
    how = f"exit status {failure.status}"
    if failure.signal:
        how = f"killed by {signal_name(failure.signal)}, {how}"
    host = "" if failure.host == socket.gethostname() else f" on {failure.host}"
    lines = [f"rank {failure.rank}{host} failed first ({how}):"]
    if failure.traceback:
        return "\n".join([*lines, failure.traceback.rstrip()])
    if failure.exception:
        lines.append(f"{failure.exception} was raised in {failure.where or 'its program'}")
    elif failure.signal == signal.SIGKILL:
        lines.append(
            "it left no traceback: it was killed from outside. The system does that to the largest "
            "process when memory runs out; `dmesg` tells"
        )
    else:
        lines.append("it left no traceback")
    tail = failure.tail.rstrip().splitlines()[-_TAIL_LINES:]
    if tail:
        lines += ["its last lines on stderr:", *tail]
    return "\n".join(lines)


def signal_name(number: int) -> str:
    """SIGKILL for 9, and so on."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def ranks_text(ranks: Iterable[int]) -> str:
    """`rank 3`, or `ranks 0, 2-5` for many."""
    ranges: list[list[int]] = []
    for rank in sorted(ranks):
        if ranges and ranges[-1][1] == rank - 1:
            ranges[-1][1] = rank
        else:
            ranges.append([rank, rank])
    text = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in ranges)
    several = len(ranges) > 1 or (ranges and ranges[0][0] != ranges[0][1])
    return f"{'ranks' if several else 'rank'} {text or 'none'}"
