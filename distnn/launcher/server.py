"""The launcher's end of the connections to the supervisors of all ranks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import resource
import secrets
import selectors
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from . import protocol

_SIOCGIFADDR = 0x8915


@dataclass
class Connection:
    """A supervisor: who it is, and how far its program has come."""

    socket: socket.socket
    rank: int = -1
    host: str = ""
    pid: int = 0
    worker: int = 0  # process id and group of the program
    ended: bool = False  # the program has ended, well or badly
    frames: protocol.Frames = field(default_factory=protocol.Frames)
    token: bytes = b""


class Server:
    """Accepts the supervisors of one job and hands on what they say."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        size: int,
        local: bool,
        heard: Callable[[Connection, bytes, bytes], None],
        lost: Callable[[Connection], None],
    ) -> None:
        """Listen.

        Args:
            size: number of ranks.
            local: all ranks run on this machine.
            heard: called with connection, kind and payload of each frame.
            lost: called when a supervisor has closed its connection.
        """
        self.job = secrets.token_hex(4)
        self.connections: dict[int, Connection] = {}  # by rank
        self._token = secrets.token_hex(protocol.TOKEN_BYTES // 2).encode()
        self._selector = selector
        self._heard = heard
        self._lost = lost
        _allow_files(size + 64)
        self._listener = socket.create_server(("127.0.0.1" if local else "", 0), backlog=1024)
        self._listener.setblocking(False)
        self._local = local
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    @property
    def address(self) -> str:
        """Value of `protocol.VARIABLE` for the supervisors."""
        port = self._listener.getsockname()[1]
        hosts = ["127.0.0.1"] if self._local else own_addresses()
        return ",".join([self.job, self._token.decode(), *(f"{host}:{port}" for host in hosts)])

    def order(self, order: bytes) -> None:
        """Send an order to all supervisors."""
        for connection in self.connections.values():
            with contextlib.suppress(OSError):
                connection.socket.send(order)

    def let_go(self) -> None:
        """Let all supervisors end, and accept no more; who has ended leaves `connections`."""
        for connection in self.connections.values():
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_WR)
        if self._listener.fileno() >= 0:
            self._selector.unregister(self._listener)
            self._listener.close()

    def close(self) -> None:
        """End without waiting for anybody."""
        self.let_go()
        for connection in self.connections.values():
            self._drop(connection)
        self.connections.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            accepted, _ = self._listener.accept()
            accepted.setblocking(False)
            connection = Connection(accepted)
            self._selector.register(
                accepted, selectors.EVENT_READ, lambda: self._receive(connection)
            )

    def _receive(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            if self.connections.get(connection.rank) is connection:
                del self.connections[connection.rank]
                self._lost(connection)
            return
        missing = protocol.TOKEN_BYTES - len(connection.token)
        if missing:
            connection.token += data[:missing]
            data = data[missing:]
            if not self._token.startswith(connection.token):
                self._drop(connection)  # somebody else on this network
                return
        for kind, payload in connection.frames.feed(data):
            if kind == protocol.HELLO:
                self._welcome(connection, json.loads(payload))
            self._heard(connection, kind, payload)

    def _welcome(self, connection: Connection, hello: dict) -> None:
        connection.rank, connection.host = hello["rank"], hello["host"]
        connection.pid = hello["pid"]
        self.connections[connection.rank] = connection
        with contextlib.suppress(OSError):
            connection.socket.send(protocol.ACCEPTED)

    def _drop(self, connection: Connection) -> None:
        if connection.socket.fileno() >= 0:
            self._selector.unregister(connection.socket)
            connection.socket.close()


def _allow_files(number: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def own_addresses() -> list[str]:
    """IPv4 addresses and names under which other machines may reach this one, the likely first."""
    addresses = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; says which interface leads outside
        addresses.append(probe.getsockname()[0])
    addresses.append(socket.gethostname())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                request = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
                addresses.append(socket.inet_ntoa(answer[20:24]))
    return [item for item in dict.fromkeys(addresses) if not item.startswith("127.")]
