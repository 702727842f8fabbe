"""Job: mpirun, the supervisors and the clock, until everything has ended.

Whatever goes wrong, a job goes through the same end: the supervisors are told to stop their
programs (SIGTERM, a second later SIGKILL), then let go, then mpirun has to end, and is made to.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from types import FrameType

from . import protocol, report, shm
from .ledger import Ledger
from .mpirun import Mpirun
from .output import Output
from .server import Connection, Server
from .wakeup import wake_on_signals

# Seconds. Together they keep below the 5 that a failed job may take to be gone.
_STOP = 2.0  # for supervisors to end their programs; they use 1.3 at most
_LEAVE = 1.0  # for mpirun to end when no rank is left
_TERMINATE = 0.7  # for mpirun to end after SIGTERM
# How often mpirun is started at most, when it cannot by chance.
_STARTS = 3
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FORWARDED = (signal.SIGUSR1, signal.SIGUSR2)


class Job:
    """One run of a program on all its ranks; for one use."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        size: int,
        local: bool,
        timeout: float | None = None,
    ) -> None:
        """Start mpirun.

        Args:
            command: mpirun and everything behind it.
            local: all ranks run on this machine.
            timeout: seconds that the job may take.
        """
        self._begin = time.monotonic()
        self._timeout = timeout
        self._output = Output()
        self._ledger = Ledger(size)
        self._selector = selectors.DefaultSelector()
        self._server = Server(self._selector, size, local, self._hear, self._ledger.lost)
        self._workers: dict[int, int] = {}  # rank -> process group on this machine
        self._signals: list[int] = []  # that want the launcher to end
        self._reason: str | None = None  # why the job was stopped, where no rank has failed
        self._status: int | None = None
        self._deadline: float | None = None  # of the present stage of the end
        self._stopping = False
        self._closed = False
        self._terminated = False
        self._wakeup = wake_on_signals(self._selector)
        self._catch_signals()
        self._command = command
        self._environment = {**environment, protocol.VARIABLE: self._server.address}
        self._starts = 0
        self._any_rank = False  # has been heard
        self._start()
        for number in _FORWARDED:
            signal.signal(number, lambda number, frame: self._mpirun.send_signal(number))

    def _start(self) -> None:
        self._starts += 1
        self._mpirun = Mpirun(self._selector, self._command, self._environment)

    def run(self) -> int:
        """Stay with the job to its end and return the exit status of the launcher."""
        try:
            while self._step():
                pass
        finally:
            self._kill_everything()
            shm.remove(shm.folder_of(self._server.job))
        return self._conclude()

    def _step(self) -> bool:
        """Wait for something and deal with it; False when mpirun and all ranks have ended."""
        for key, _ in self._selector.select(self._patience()):
            if key.fd == self._wakeup:
                os.read(self._wakeup, 4096)
            else:
                key.data()
        now = time.monotonic()
        self._output.tick(now)
        ended = self._mpirun.has_ended()
        if not self._stopping:
            self._show_mpirun_text()
            if ended and self._may_start_again():
                self._output.say("[distnn-launch] mpirun could not start; it is started again")
                self._start()
                return True
            self._look_for_reasons(now, ended)
        elif len(self._signals) > 1:  # Ctrl-C again: no more waiting
            self._kill_everything()
        if not self._closed and self._all_ended():
            self._close(now)
        if ended and not self._server.connections:
            return False
        if self._deadline is not None and now >= self._deadline:
            self._next_stage(now)
        return True

    def _hear(self, connection: Connection, kind: bytes, payload: bytes) -> None:
        self._any_rank = True
        if kind in (protocol.OUT, protocol.ERR):
            fd = 1 if kind == protocol.OUT else 2
            self._output.feed(connection.rank, fd, payload, time.monotonic())
            return
        account = json.loads(payload)
        if kind == protocol.STARTED:
            if connection.host == socket.gethostname():
                self._workers[connection.rank] = account["pid"]
        elif kind == protocol.FAILED:
            self._ledger.failed(connection, account)
        elif kind == protocol.ENDED:
            self._workers.pop(connection.rank, None)
            self._ledger.ended(connection, account)

    def _show_mpirun_text(self) -> None:
        text, self._mpirun.text = self._mpirun.text, b""
        if text and not self._closed:  # then it wonders about supervisors that we let go
            self._output.say(text.decode(errors="replace").rstrip("\n"))

    def _may_start_again(self) -> bool:
        """True when nothing has run yet, and another try may help."""
        wanted = not self._any_rank and not self._signals and self._starts < _STARTS
        return wanted and self._mpirun.failed_by_chance

    def _look_for_reasons(self, now: float, mpirun_ended: bool) -> None:
        """Begin the end when a rank has failed, time is over, or somebody wants it."""
        self._ledger.look(now)
        unfinished = report.ranks_text(self._ledger.unfinished)
        if self._ledger.failures:
            self._stop(now)
        elif self._signals:
            number = self._signals[0]
            text = f"interrupted by {report.signal_name(number)}; not finished: {unfinished}"
            self._stop(now, text, 128 + number)
        elif self._closed or not self._ledger.unfinished:
            pass
        elif mpirun_ended:
            text = f"mpirun ended ({self._mpirun.how_it_ended()}) before {unfinished} had finished"
            self._stop(now, text, self._mpirun.status)
        elif self._output.broken:
            self._stop(now, "nobody reads the output any more", 128 + signal.SIGPIPE)
        elif self._timeout is not None and now - self._begin >= self._timeout:
            text = f"timeout: {self._timeout:g} s are over; not finished: {unfinished}"
            self._stop(now, text, 124, protocol.DUMP)

    def _stop(
        self,
        now: float,
        reason: str | None = None,
        status: int | None = None,
        order: bytes = protocol.STOP,
    ) -> None:
        self._stopping = True
        self._reason, self._status = reason, status
        self._server.order(order)
        self._deadline = now + _STOP

    def _all_ended(self) -> bool:
        if self._stopping:
            return all(item.ended for item in self._server.connections.values())
        return not self._ledger.unfinished

    def _close(self, now: float) -> None:
        """Let the supervisors go; mpirun should end by itself then."""
        failures = self._ledger.failures.values()
        if failures and not report.first(failures).exception:
            self._show_mpirun_text()  # perhaps it knows why
        self._closed = True
        self._server.let_go()
        self._deadline = now + _LEAVE

    def _next_stage(self, now: float) -> None:
        if not self._closed:
            self._kill_workers()
            self._close(now)
        elif not self._terminated:
            self._terminated = True
            self._mpirun.send_signal(signal.SIGTERM)
            self._deadline = now + _TERMINATE
        else:
            self._kill_everything()

    def _kill_workers(self) -> None:
        for group in self._workers.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)

    def _kill_everything(self) -> None:
        self._kill_workers()
        for connection in self._server.connections.values():
            if connection.host == socket.gethostname():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(connection.pid, signal.SIGKILL)
        self._server.close()
        self._closed = True
        self._mpirun.kill()

    def _conclude(self) -> int:
        """Print what the job ended with, as the last thing, and return the exit status."""
        self._output.finish()
        if self._status is not None:
            self._output.say(f"[distnn-launch] {self._reason}")
            return self._status
        if not self._ledger.failures:
            return 0
        failure = report.first(self._ledger.failures.values())
        self._output.say(report.text_of(failure))
        return failure.status

    def _patience(self) -> float:
        """Seconds to wait for something to happen."""
        ends = [1.0, self._ledger.patience()]
        now = time.monotonic()
        if self._deadline is not None:
            ends.append(self._deadline - now)
        if self._timeout is not None and not self._stopping:
            ends.append(self._begin + self._timeout - now)
        return max(0.0, min(ends))

    def _catch_signals(self) -> None:
        def end(number: int, frame: FrameType | None) -> None:
            self._signals.append(number)

        for number in _ENDING:
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                signal.signal(number, end)
