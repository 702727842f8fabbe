"""The mpirun process: started apart from the terminal, its own words kept apart from the ranks'."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
from collections.abc import Mapping, Sequence

from . import report

# Open MPI 5 has no port for its own server now and then, where many programs open ports at once.
_TRANSIENT = b"listener thread failed to start"


class Mpirun:
    """A running mpirun, with what it says in `text` until somebody takes it."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        command: Sequence[str],
        environment: Mapping[str, str],
    ) -> None:
        self.text = b""
        self.failed_by_chance = False  # it could not start, and may be able to a moment later
        self._selector = selector
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,  # supervisor.py says why
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            # Ctrl-C reaches the launcher alone, which ends the ranks in its own order.
            start_new_session=True,
        )
        self._pipes = []
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            self._pipes.append(pipe.fileno())
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, self._read_all)

    def has_ended(self) -> bool:
        """True when the process is gone; all its words are in `text` then."""
        if self._process.poll() is None:
            return False
        self._read_all()
        return True

    @property
    def status(self) -> int:
        """Exit status of a launcher whose mpirun has ended too early: never 0."""
        code = self._process.returncode
        return code if code > 0 else 128 - code if code < 0 else 1

    def how_it_ended(self) -> str:
        """`exit status 1` or `killed by SIGKILL`."""
        code = self._process.returncode
        return f"exit status {code}" if code >= 0 else f"killed by {report.signal_name(-code)}"

    def send_signal(self, number: int) -> None:
        """Send it a signal; it forwards SIGUSR1 and SIGUSR2 to all ranks."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once, with what it has started on this machine."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _read_all(self) -> None:
        for pipe in list(self._pipes):
            with contextlib.suppress(BlockingIOError):
                while data := os.read(pipe, 65536):
                    self.text += data
                    self.failed_by_chance = self.failed_by_chance or _TRANSIENT in self.text
                self._selector.unregister(pipe)
                self._pipes.remove(pipe)
