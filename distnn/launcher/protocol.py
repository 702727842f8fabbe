"""What a rank's supervisor and the launcher say to each other over TCP.

A connection begins with the job's token, then frames: kind (1 byte), length (4 bytes), payload.
Orders from the launcher are single bytes. When the connection ends, the other side is gone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

# The variable that brings "job,token,host:port,host:port,..." to the supervisors.
VARIABLE = "DISTNN_LAUNCHER"

HELLO = b"h"  # JSON: rank, host, pid of the supervisor
STARTED = b"s"  # JSON: pid of the worker, which leads a process group of its own
OUT = b"o"  # bytes the worker wrote to stdout
ERR = b"e"  # bytes the worker wrote to stderr
FAILED = b"f"  # JSON: an uncaught exception: time, status, exception, traceback, where
# JSON: time, status, signal, tail (the last of stderr), finished (came to the program's end)
ENDED = b"x"

ACCEPTED = b"A"
STOP = b"S"  # end the worker: SIGTERM, a second later SIGKILL
DUMP = b"D"  # as STOP, but first have it print where all its threads are

TOKEN_BYTES = 32
_HEAD = struct.Struct("!cI")


def frame(kind: bytes, payload: bytes | dict) -> bytes:
    """One message of a supervisor."""
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return _HEAD.pack(kind, len(data)) + data


class Frames:
    """Cuts a stream of bytes into the frames it was made of."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Take in `data`; yield kind and payload of each frame that is complete now."""
        self._bytes += data
        while len(self._bytes) >= _HEAD.size:
            kind, length = _HEAD.unpack_from(self._bytes)
            end = _HEAD.size + length
            if len(self._bytes) < end:
                return
            payload = bytes(self._bytes[_HEAD.size : end])
            del self._bytes[:end]
            yield kind, payload
