"""The process around the user's program in each rank: passes on its output, knows how it ended.

It outlives the program whatever ends that (an exception, os._exit, a signal), tells the launcher,
and stays until the launcher has ended all ranks: mpirun, which watches this process and kills
everything a quarter of a second after one rank ends badly, gets no part in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import traceback
from types import FrameType
from typing import IO

from . import protocol, shm
from .errors import LaunchError
from .place import Place
from .rank import RankOptions, command, prepare
from .wakeup import wake_on_signals

# Seconds between SIGTERM and SIGKILL, and given to a program to print where its threads are.
GRACE = 1.0
_DUMP = 0.3
_CONNECT = 10.0
# What is kept of stderr for a program that leaves no traceback.
_TAIL = 8192
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Supervisor:
    """Runs one rank's program from start to end; for one use."""

    def __init__(self, options: RankOptions, launcher: str, place: Place | None) -> None:
        self._options = options
        self._job, self._token, *self._addresses = launcher.split(",")
        self._place = place
        self._worker: subprocess.Popen | None = None
        self._group: int | None = None  # process group of the program, as long as it may be killed
        self._pipes: dict[int, bytes] = {}  # read ends -> kind of frame
        self._record = b""
        self._finished = False  # the program has reached its end
        self._tail = b""
        self._log: IO[bytes] | None = None
        self._shared: shm.SharedFolder | None = None
        self._launcher: socket.socket
        self._selector = selectors.DefaultSelector()
        self._signals: list[tuple[float, int]] = []  # (when, signal) still to be sent
        self._stopping = False
        self._ended = False

    def run(self) -> int:
        """Returns the exit status of the program, 128 + n when signal n ended it."""
        if self._place is None:
            print(
                "[distnn-launch] no variable says which rank this is (OMPI_COMM_WORLD_RANK, "
                "PMI_RANK, ...); is this mpirun the one of mpi4py's MPI?",
                file=sys.stderr,
            )
            return 1
        self._connect(self._place)
        wakeup = self._watch_signals()
        try:
            self._start(self._place)
        except (LaunchError, OSError) as error:
            return self._refuse(error)
        status = None
        while True:
            for key, _ in self._selector.select(self._next_signal()):
                if key.fileobj is self._launcher:
                    if not self._obey():
                        self._sweep()
                        return 1 if status is None else status
                elif key.fd == wakeup:
                    os.read(wakeup, 4096)
                else:
                    self._pass_on(key.fd)
            self._send_signals()
            if not self._ended and self._worker is not None and self._worker.poll() is not None:
                status = self._report_end()

    def _connect(self, place: Place) -> None:
        hello = {"rank": place.rank, "host": socket.gethostname(), "pid": os.getpid()}
        errors = []
        for address in self._addresses:
            host, _, port = address.rpartition(":")
            try:
                self._launcher = socket.create_connection((host, int(port)), timeout=_CONNECT)
                self._launcher.sendall(self._token.encode() + protocol.frame(protocol.HELLO, hello))
                if self._launcher.recv(1) == protocol.ACCEPTED:
                    self._launcher.settimeout(None)
                    self._selector.register(self._launcher, selectors.EVENT_READ)
                    return
                errors.append(f"{address}: refused")
            except OSError as error:
                errors.append(f"{address}: {error}")
        raise SystemExit(
            f"[distnn-launch] rank {place.rank} on {hello['host']} cannot reach the launcher "
            f"({'; '.join(errors)}); open these ports between the nodes, or start the ranks by "
            "mpirun with `python -m distnn.launcher.rank` (launch/mpirun.sh)"
        )

    def _start(self, place: Place) -> None:
        if self._options.log_dir is not None:
            os.makedirs(self._options.log_dir, exist_ok=True)
            name = f"rank-{place.rank:0{len(str(place.size - 1))}}.log"
            path = os.path.join(self._options.log_dir, name)
            self._log = open(path, "wb", buffering=0)  # noqa: SIM115  # closed by the system
        with contextlib.suppress(OSError):
            self._shared = shm.SharedFolder(self._job)
        shared = self._shared.path if self._shared is not None else None
        environment = prepare(place, self._options, shared)
        record, record_end = os.pipe()
        os.set_inheritable(record_end, True)
        self._worker = subprocess.Popen(
            command(self._options, record_end, os.getpid()),
            # Open MPI 5 passes stdin on without its end, or twice (prrte#2220, #2579).
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            process_group=0,  # so that it can be killed together with what it starts
            close_fds=False,  # Hydra gives a rank its connection as an open file, PMI_FD
        )
        self._group = self._worker.pid
        os.close(record_end)
        assert self._worker.stdout is not None
        assert self._worker.stderr is not None
        self._pipes = {
            self._worker.stdout.fileno(): protocol.OUT,
            self._worker.stderr.fileno(): protocol.ERR,
            record: protocol.FAILED,
        }
        for pipe in self._pipes:
            os.set_blocking(pipe, False)
            self._selector.register(pipe, selectors.EVENT_READ)
        self._send(protocol.STARTED, {"pid": self._worker.pid})

    def _refuse(self, error: Exception) -> int:
        """The program cannot be started here: say so, and wait for the launcher to end all."""
        text = str(error) if isinstance(error, LaunchError) else traceback.format_exc()
        account = {"time": time.time(), "status": 2}
        self._send(protocol.FAILED, {**account, "traceback": text})
        self._send(protocol.ENDED, {**account, "signal": 0, "tail": "", "finished": False})
        with contextlib.suppress(OSError):
            while self._launcher.recv(1):
                pass
        return 2

    def _obey(self) -> bool:
        """Read orders; False when the launcher has ended or is gone."""
        try:
            orders = self._launcher.recv(64)
        except OSError:
            orders = b""
        if self._worker is not None and not self._stopping and orders != b"":
            self._stopping = True
            now = time.monotonic()
            if protocol.DUMP in orders:
                self._kill(signal.SIGQUIT)
                now += _DUMP
            self._signals = [(now, signal.SIGTERM), (now + GRACE, signal.SIGKILL)]
        return orders != b""

    def _next_signal(self) -> float | None:
        if not self._signals:
            return None
        return max(0.0, self._signals[0][0] - time.monotonic())

    def _send_signals(self) -> None:
        while self._signals and self._signals[0][0] <= time.monotonic():
            self._kill(self._signals.pop(0)[1])

    def _kill(self, number: int) -> None:
        """Send a signal to the program and what it has started; to it alone if it may catch it."""
        if self._group is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if number != signal.SIGQUIT:
                os.killpg(self._group, number)
            elif not self._ended:
                os.kill(self._group, number)

    def _sweep(self) -> None:
        """Leave nothing behind, except what a program that ended well has left on purpose."""
        if self._stopping or not self._ended:
            self._kill(signal.SIGKILL)
        if self._worker is not None:
            self._worker.wait()
        if self._shared is not None:
            self._shared.leave()

    def _pass_on(self, pipe: int) -> bool:
        """Pass on what lies in a pipe; False when there is nothing."""
        try:
            data = os.read(pipe, 65536)
        except BlockingIOError:
            return False
        kind = self._pipes[pipe]
        if not data:
            self._selector.unregister(pipe)
            del self._pipes[pipe]
            return False
        if kind == protocol.FAILED:
            *accounts, self._record = (self._record + data).split(b"\n")
            for account in map(json.loads, accounts):
                if "finished" in account:
                    self._finished = True
                else:
                    self._send(kind, account)
            return True
        if self._log is not None:
            with contextlib.suppress(OSError):  # a full disk ends no training
                self._log.write(data)
        if kind == protocol.ERR:
            self._tail = (self._tail + data)[-_TAIL:]
        tee = self._options.tee
        if tee == "all" or (tee == "0" and self._place is not None and self._place.rank == 0):
            self._send(kind, data)
        return True

    def _report_end(self) -> int:
        """The program has ended: pass on its last words and how it ended."""
        assert self._worker is not None
        now = time.time()
        for pipe in list(self._pipes):
            while pipe in self._pipes and self._pass_on(pipe):
                pass
        code = self._worker.returncode
        status = code if code >= 0 else 128 - code
        tail = self._tail.decode(errors="replace")
        end = {"time": now, "status": status, "signal": max(0, -code), "tail": tail}
        self._send(protocol.ENDED, {**end, "finished": self._finished})
        self._ended = True
        if code != 0 or self._stopping:
            self._kill(signal.SIGKILL)  # what the program has started and not ended
            self._group = None
        elif not _exists(self._worker.pid):
            self._group = None  # much later its number may be that of other processes
        return status

    def _send(self, kind: bytes, payload: bytes | dict) -> None:
        # A launcher that is gone is noticed where its orders are read.
        with contextlib.suppress(OSError):
            self._launcher.sendall(protocol.frame(kind, payload))

    def _watch_signals(self) -> int:
        """Pass signals on to the program; returns the file that wakes the loop at its end."""

        def forward(number: int, frame: FrameType | None) -> None:
            if self._worker is None or self._worker.poll() is not None:
                if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    self._sweep()
                    os._exit(128 + number)
            else:
                self._kill(number)

        for number in _FORWARDED:
            signal.signal(number, forward)
        return wake_on_signals(self._selector)


def _exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
