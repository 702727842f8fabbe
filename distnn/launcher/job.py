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
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from . import protocol, report, shm
from .output import Output
from .server import Connection, Server

# Seconds. Together with a last look they keep below the 5 that a failed job may take to be gone.
_STOP = 2.0  # for supervisors to end their programs; they use 1.3 at most
_LEAVE = 1.0  # for mpirun to end when no rank is left
_TERMINATE = 0.7  # for mpirun to end after SIGTERM
# For the others to follow a rank that ends by os._exit(0): MPI programs that end so meet before.
# Where one rank has left too early, the others wait for it in MPI for ever.
_FOLLOW = 2.0
# For mpirun to tell why supervisors are gone: Hydra kills them all when a program calls MPI_Abort.
_LOST = 0.25
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
        """Args:
        command: mpirun and everything behind it.
        local: all ranks run on this machine.
        timeout: seconds that the job may take.
        """
        self._command = command
        self._environment = environment
        self._size = size
        self._timeout = timeout
        self._output = Output()
        self._selector = selectors.DefaultSelector()
        self._server = Server(self._selector, local, self._hear, self._lose)
        self._workers: dict[int, int] = {}  # rank -> process group on this machine
        self._failures: dict[int, report.Failure] = {}
        self._unfinished = set(range(size))
        self._left: tuple[float, Connection] | None = None  # when who first ended by os._exit(0)
        self._mpirun_text = b""  # held back: what mpirun says of ranks that we end
        self._lost: tuple[float, Connection] | None = None  # when which supervisor was gone first
        self._signal = 0
        self._interrupts = 0
        self._reason: str | None = None  # why it was stopped, where no rank has failed
        self._status: int | None = None
        self._deadline: float | None = None  # of the present stage of the end
        self._stopping = False
        self._closed = False
        self._terminated = False

    def run(self) -> int:
        """Run the job to its end and return the exit status of the launcher."""
        wakeup = self._watch_signals()
        self._begin = time.monotonic()
        try:
            self._start()
            while self._step(wakeup):
                pass
        finally:
            self._kill_everything()
            shm.remove(shm.folder_of(self._server.job))
        return self._conclude()

    def _start(self) -> None:
        environment = {**self._environment, protocol.VARIABLE: self._server.address}
        self._mpirun = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            # Ctrl-C reaches the launcher alone, which ends the ranks in its own order.
            start_new_session=True,
        )
        for pipe in (self._mpirun.stdout, self._mpirun.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ)

    def _step(self, wakeup: int) -> bool:
        """Wait for something and deal with it; False when mpirun and all ranks have ended."""
        for key, _ in self._selector.select(self._patience()):
            if key.data is not None:
                key.data()
            elif key.fd == wakeup:
                os.read(wakeup, 4096)
            else:
                self._pass_on(key.fd)
        now = time.monotonic()
        self._output.tick(now)
        self._look_for_reasons(now)
        if not self._closed and self._all_ended():
            self._close(now)
        ended = self._mpirun.poll() is not None
        if ended:
            self._drain()
            if not self._closed and not self._stopping:
                self._stop(now, self._mpirun_failure(), self._mpirun_status())
            if self._closed or not self._server.connections:
                return False
        if self._deadline is not None and now >= self._deadline:
            self._next_stage(now)
        return True

    # What ranks and mpirun say

    def _hear(self, connection: Connection, kind: bytes, payload: bytes) -> None:
        rank = connection.rank
        if kind in (protocol.OUT, protocol.ERR):
            self._output.feed(rank, 1 if kind == protocol.OUT else 2, payload, time.monotonic())
            return
        account = json.loads(payload)
        if kind == protocol.STARTED:
            if connection.host == socket.gethostname():
                self._workers[rank] = account["pid"]
            if self._stopping:
                self._server.order(protocol.STOP)
        elif kind == protocol.FAILED:
            self._failures[rank] = report.Failure(rank, connection.host, **account)
        elif kind == protocol.ENDED:
            self._note_end(connection, **account)

    def _note_end(self, connection: Connection, finished: bool, **account: Any) -> None:
        rank = connection.rank
        connection.ended = True
        self._workers.pop(rank, None)
        if rank in self._failures:
            self._failures[rank].tail = account["tail"]
        elif account["status"] != 0:
            self._failures[rank] = report.Failure(rank, connection.host, **account)
        else:
            self._unfinished.discard(rank)
            if not finished and self._left is None:
                self._left = time.monotonic(), connection

    def _look_for_leavers(self, now: float) -> None:
        """Find the ranks that no longer take part, although nobody has said that they failed."""
        if self._left is not None and self._unfinished and now - self._left[0] >= _FOLLOW:
            self._fail(
                self._left[1],
                "it ended by os._exit(0) before the end of its program, and "
                f"{report.ranks_text(self._unfinished)} had not ended {_FOLLOW:g} s later; "
                "end the program by returning, so that MPI_Finalize is called",
            )
        elif self._lost is not None and now - self._lost[0] >= _LOST:
            self._fail(
                self._lost[1],
                "its supervisor process is gone: killed from outside, or the node or network "
                "failed",
            )

    def _fail(self, connection: Connection, why: str) -> None:
        rank = connection.rank
        self._failures[rank] = report.Failure(rank, connection.host, time.time(), 1, traceback=why)

    def _lose(self, connection: Connection) -> None:
        del self._server.connections[connection.rank]
        if not connection.ended and self._lost is None:
            self._lost = time.monotonic(), connection

    def _pass_on(self, fd: int) -> bool:
        """Read from mpirun itself; False at the end or when there is nothing now."""
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return False
        if not data:
            self._selector.unregister(fd)
            return False
        if self._closed:
            pass  # on supervisors that we let go
        elif self._stopping:
            self._mpirun_text += data
        else:
            self._output.say(data.decode(errors="replace").rstrip("\n"))
        return True

    def _drain(self) -> None:
        for key in list(self._selector.get_map().values()):
            if key.fileobj in (self._mpirun.stdout, self._mpirun.stderr):
                while self._pass_on(key.fd):
                    pass

    # The end

    def _look_for_reasons(self, now: float) -> None:
        """Begin the end when a rank has failed, time is over, or somebody wants it."""
        if self._stopping:
            if self._interrupts > 1:  # Ctrl-C again: no more waiting
                self._kill_everything()
            return
        self._look_for_leavers(now)
        unfinished = report.ranks_text(self._unfinished)
        if self._failures:
            self._stop(now)
        elif self._signal:
            name = report.signal_name(self._signal)
            text = f"interrupted by {name}; not finished: {unfinished}"
            self._stop(now, text, 128 + self._signal)
        elif self._output.broken:
            self._stop(now, "nobody reads the output any more", 128 + signal.SIGPIPE)
        elif self._timeout is not None and now - self._begin >= self._timeout and not self._closed:
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
        connections = self._server.connections.values()
        if not all(connection.ended for connection in connections):
            return False
        return self._stopping or not self._unfinished

    def _close(self, now: float) -> None:
        """Let the supervisors go; mpirun should end by itself then."""
        self._closed = True
        self._server.close()
        self._deadline = now + _LEAVE

    def _next_stage(self, now: float) -> None:
        if not self._closed:
            self._kill_workers()
            self._close(now)
        elif not self._terminated:
            self._terminated = True
            self._mpirun.terminate()
            self._deadline = now + _TERMINATE
        else:
            self._kill_everything()

    def _kill_workers(self) -> None:
        for group in self._workers.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)

    def _kill_everything(self) -> None:
        self._kill_workers()
        self._server.close()
        self._closed = True
        if hasattr(self, "_mpirun") and self._mpirun.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._mpirun.pid, signal.SIGKILL)
            self._mpirun.wait()

    def _conclude(self) -> int:
        """Print what the job ended with, as the last thing, and return the exit status."""
        self._output.finish()
        if self._status is not None:
            self._output.say(f"[distnn-launch] {self._reason}")
            return self._status
        if not self._failures:
            return 0
        failure = report.first(self._failures.values())
        if not failure.traceback and self._mpirun_text:
            self._output.say(self._mpirun_text.decode(errors="replace").rstrip("\n"))
        self._output.say(report.text_of(failure))
        return failure.status

    def _mpirun_status(self) -> int:
        code = self._mpirun.returncode
        return code if code > 0 else 128 - code if code < 0 else 1

    def _mpirun_failure(self) -> str:
        code = self._mpirun.returncode
        how = f"exit status {code}" if code >= 0 else f"killed by {report.signal_name(-code)}"
        return f"mpirun ended ({how}) before {report.ranks_text(self._unfinished)} had finished"

    # Waiting

    def _patience(self) -> float:
        """Seconds to wait for something to happen."""
        ends = [1.0]
        now = time.monotonic()
        if self._deadline is not None:
            ends.append(self._deadline - now)
        if self._timeout is not None and not self._stopping:
            ends.append(self._begin + self._timeout - now)
        if self._lost is not None and not self._stopping:
            ends.append(_LOST)
        return max(0.0, min(ends))

    def _watch_signals(self) -> int:
        """Note signals; returns the file that wakes the loop when one comes."""

        def note(number: int, frame: FrameType | None) -> None:
            self._signal = number
            self._interrupts += 1

        for number in _SIGNALS:
            signal.signal(number, note)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._selector.register(read, selectors.EVENT_READ)
        return read
