"""The board of ranks that are processes: a thread in each, connected by TCP to one on rank 0.

MPI cannot tell who is missing: who waits is inside of it, and who is missing is not. So this goes
beside MPI. Nothing is sent while all goes well.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

from ..launcher.server import own_addresses
from ..logger import logger
from .board import Notes, SilentBoard, Status
from .transport import Transport

_CONNECT = 5.0  # seconds
_ANSWER = 1.0  # seconds that ranks have to say what they do
_LEAVE = 1.0  # seconds between a rank's stacks and its end: time for the others to say why


def connect(transport: Transport) -> TcpBoard | SilentBoard:
    """The board of all ranks; a silent one, with a warning, where they cannot reach rank 0."""
    hosts = transport.all_gather_bytes(socket.gethostname().encode())
    local = len(set(hosts)) == 1
    hub = _Hub(transport.size, local) if transport.rank == 0 else None
    told = hub.address if hub is not None else b""
    address = json.loads(transport.all_gather_bytes(told)[0])
    connection = _connect(address, transport.rank)
    reached = transport.all_gather_bytes(b"1" if connection is not None else b"")
    missing = [r for r, ok in enumerate(reached) if not ok]
    if missing:
        if transport.rank == 0:
            logger.warning(
                "ranks %s cannot reach rank 0 at %s: errors will not say which rank is late",
                missing,
                address["addresses"],
            )
        return SilentBoard()
    assert connection is not None
    return TcpBoard(connection, transport.rank)


def _connect(address: dict[str, Any], rank: int) -> socket.socket | None:
    for host, port in address["addresses"]:
        with contextlib.suppress(OSError):
            connection = socket.create_connection((host, port), timeout=_CONNECT)
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(_line({"hello": rank, "token": address["token"]}))
            return connection
    return None


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


class TcpBoard:
    """This rank's connection to the hub on rank 0."""

    def __init__(self, connection: socket.socket, rank: int) -> None:
        self.notes = Notes()
        self._rank = rank
        self._connection = connection
        self._gone: dict[int, str] = {}
        self._answer: dict[int, Status] = {}
        self._answered = threading.Event()
        self._closed = False
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, name="distnn board", daemon=True).start()

    def gone(self) -> dict[int, str]:
        return self._gone

    def statuses(self) -> dict[int, Status]:
        self._answered.clear()
        self._send({"ask": True})
        if not self._answered.wait(2 * _ANSWER):
            return {self._rank: self.notes.status()}
        return self._answer

    def end(self, ranks: Iterable[int], why: str) -> None:
        self._send({"end": list(ranks), "why": why})

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._send({"bye": True})
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_WR)

    def _send(self, message: dict[str, Any]) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall(_line(message))

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError), self._connection.makefile("rb") as lines:
            for line in lines:
                self._obey(json.loads(line))
        self._connection.close()
        if not self._closed and self._rank != 0:
            self._gone[0] = "its process has ended or cannot be reached"

    def _obey(self, message: dict[str, Any]) -> None:
        if "report" in message:
            self._send({"status": self.notes.status()})
        elif "statuses" in message:
            self._answer = {int(r): Status(*s) for r, s in message["statuses"].items()}
            self._answered.set()
        elif "gone" in message:
            self._gone[message["gone"]] = message["how"]
        elif "end" in message:
            self._leave(message["end"])

    def _leave(self, why: str) -> None:
        stderr = sys.__stderr__
        if stderr is not None:
            print(f"rank {self._rank}: {why}; its threads are here:", file=stderr, flush=True)
            faulthandler.dump_traceback(stderr, all_threads=True)
            stderr.flush()
        time.sleep(_LEAVE)
        os._exit(1)


class _Hub:
    """On rank 0: knows the connections of all ranks, hands on what they say."""

    def __init__(self, size: int, local: bool) -> None:
        self._size = size
        self._token = secrets.token_hex(16)
        self._listener = socket.create_server(("127.0.0.1" if local else "", 0), backlog=size)
        self._listener.setblocking(False)
        port = self._listener.getsockname()[1]
        hosts = ["127.0.0.1"] if local else own_addresses()
        facts = {"token": self._token, "addresses": [(host, port) for host in hosts]}
        self.address = json.dumps(facts).encode()
        self._ranks: dict[int, socket.socket] = {}
        self._buffers: dict[socket.socket, bytes] = {}
        self._left: set[int] = set()
        self._askers: set[int] = set()
        self._statuses: dict[int, Any] = {}
        self._deadline: float | None = None  # of the round of reports that is under way
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        threading.Thread(target=self._run, name="distnn board hub", daemon=True).start()

    def _run(self) -> None:
        while self._ranks or len(self._left) < self._size:
            patience = None
            if self._deadline is not None:
                patience = max(0.0, self._deadline - time.monotonic())
            for key, _ in self._selector.select(patience):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._receive(key.fileobj)  # type: ignore[arg-type]
            if self._deadline is not None and (
                time.monotonic() >= self._deadline or self._statuses.keys() >= self._ranks.keys()
            ):
                self._deadline = None
                for rank in self._askers:
                    self._send(rank, {"statuses": self._statuses})
                self._askers.clear()
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(True)
            self._buffers[connection] = b""
            self._selector.register(connection, selectors.EVENT_READ)

    def _receive(self, connection: socket.socket) -> None:
        rank = next((r for r, c in self._ranks.items() if c is connection), None)
        try:
            data = connection.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(connection)
            connection.close()
            del self._buffers[connection]
            if rank is not None:
                del self._ranks[rank]
                if rank not in self._left:
                    self._left.add(rank)
                    self._tell_gone(rank, "its process has ended")
            return
        *lines, self._buffers[connection] = (self._buffers[connection] + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if rank is None:
                if message.get("token") != self._token:
                    return  # somebody else on this network
                rank = message["hello"]
                self._ranks[rank] = connection
            else:
                self._hear(rank, message)

    def _hear(self, rank: int, message: dict[str, Any]) -> None:
        if "status" in message:
            self._statuses[rank] = message["status"]
        elif "ask" in message:
            self._askers.add(rank)
            if self._deadline is None:
                self._deadline = time.monotonic() + _ANSWER
                self._statuses = {}
                for other in self._ranks:
                    self._send(other, {"report": True})
        elif "end" in message:
            for other in message["end"]:
                self._send(other, {"end": message["why"]})
        elif "bye" in message:
            self._left.add(rank)
            self._tell_gone(rank, "it has closed its communicator, or its program has ended")

    def _tell_gone(self, rank: int, how: str) -> None:
        for other in self._ranks:
            if other != rank:
                self._send(other, {"gone": rank, "how": how})

    def _send(self, rank: int, message: dict[str, Any]) -> None:
        connection = self._ranks.get(rank)
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.sendall(_line(message))
