"""Output of all ranks on one terminal: whole lines, each with its rank in front.

A progress bar, which rewrites its line with carriage returns, appears as one line every two
seconds and once in its last state; text without a line end, a prompt say, after two seconds.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator

_PATIENCE = 2.0
_LONGEST = 1 << 20
_COLOURS = (36, 33, 32, 35, 34, 31)


class Lines:
    """Makes lines of the bytes that one rank writes to one stream."""

    def __init__(self) -> None:
        self._text = b""  # without a line end so far
        self._since = 0.0
        self._shown = b""  # state of a progress bar that was shown last
        self._continued = False  # part of this line was shown already

    def feed(self, data: bytes, now: float) -> Iterator[bytes]:
        """Take in `data` at time `now` (seconds); yield the lines that are complete."""
        if not self._text:
            self._since = now
        *complete, self._text = (self._text + data).split(b"\n")
        for line in complete:
            state = _last_state(line)
            if state != self._shown or not (self._continued or self._shown):
                yield state
            self._continued, self._shown, self._since = False, b"", now
        if len(self._text) > _LONGEST:
            yield from self._show()

    def due(self, now: float) -> Iterator[bytes]:
        """Yield what has waited long enough for its line end."""
        if self._text and now - self._since >= _PATIENCE:
            self._since = now
            yield from self._show()

    def rest(self) -> Iterator[bytes]:
        """Yield what there is, as nothing more will come."""
        yield from self._show()

    def _show(self) -> Iterator[bytes]:
        text, bar = self._text, b"\r" in self._text
        state = _last_state(text)
        # A bar keeps its state: the line that ends it may bring nothing new.
        self._text = b"\r" + state if bar else b""
        if state and state != self._shown:
            self._shown = state if bar else b""
            self._continued = not bar
            yield state
        elif not bar:
            self._text = text


def _last_state(line: bytes) -> bytes:
    """What a terminal shows of a line that is rewritten after each carriage return."""
    if b"\r" not in line:
        return line
    return next((state for state in reversed(line.split(b"\r")) if state.strip()), b"")


class Output:
    """Standard output and standard error of the launcher, shared by all ranks."""

    def __init__(self) -> None:
        self._lines: dict[tuple[int, int], Lines] = {}
        self._coloured = {fd: os.isatty(fd) and "NO_COLOR" not in os.environ for fd in (1, 2)}
        self.broken = False  # nobody reads stdout any more

    def feed(self, rank: int, fd: int, data: bytes, now: float) -> None:
        """Show what `rank` wrote to file descriptor `fd` (1 or 2) as far as it is whole lines."""
        lines = self._lines.setdefault((rank, fd), Lines())
        self._show(rank, fd, lines.feed(data, now))

    def tick(self, now: float) -> None:
        """Show what has waited long enough; to be called about every second."""
        for (rank, fd), lines in self._lines.items():
            self._show(rank, fd, lines.due(now))

    def finish(self) -> None:
        """Show everything that is left."""
        for (rank, fd), lines in self._lines.items():
            self._show(rank, fd, lines.rest())
        self._lines.clear()

    def say(self, text: str) -> None:
        """Print a text of the launcher itself to stderr."""
        self._write(2, text.encode(errors="replace") + b"\n")

    def _show(self, rank: int, fd: int, lines: Iterator[bytes]) -> None:
        prefix = b"[r%d] " % rank
        if self._coloured[fd]:
            prefix = b"\x1b[%dm%s\x1b[0m" % (_COLOURS[rank % len(_COLOURS)], prefix)
        text = b"".join(prefix + line + b"\n" for line in lines)
        if text:
            self._write(fd, text)

    def _write(self, fd: int, text: bytes) -> None:
        if fd == 1 and self.broken:
            return
        while text:
            try:
                text = text[os.write(fd, text) :]
            except BlockingIOError:  # a terminal that another program has made non-blocking
                select.select([], [fd], [], 1.0)
            except OSError:
                self.broken = self.broken or fd == 1
                return


def warn(text: str) -> None:
    """Print a message of the launcher before any rank runs."""
    print(f"[distnn-launch] {text}", file=sys.stderr, flush=True)
