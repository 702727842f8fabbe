"""What the emulated device did, for tests to look at; and what it pretends to be."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass
class Record:
    """Counts and a list of operations since `clear()`.

    operations holds tuples, oldest first, of the last 100 000:
    ("kernel", name, stream), ("function", name, stream), ("copy", kind, bytes, stream) with kind
    "HtoD", "DtoH", "DtoD" or "HtoH", ("memset", bytes, stream), ("event", event, stream),
    ("wait", event, stream), ("synchronize", what, stream), ("graph", graph, stream). Streams are
    addresses (`stream.ptr`), 0 is the null stream.
    """

    synchronizations: int = 0  # times the host waited for the device
    uploads: int = 0  # arrays copied from host to device
    downloads: int = 0  # arrays copied from device to host
    operations: deque[tuple[Any, ...]] = field(default_factory=lambda: deque(maxlen=100_000))

    def clear(self) -> None:
        self.synchronizations = self.uploads = self.downloads = 0
        self.operations.clear()

    def kernels(self) -> list[str]:
        """Names of the kernels that were launched, in order."""
        return [entry[1] for entry in self.operations if entry[0] == "kernel"]


@dataclass
class Settings:
    """How the emulated device behaves; `using(...)` changes it for a while."""

    device_count: int = 1
    device_memory: int = 4 << 30  # bytes of each device
    compute_capability: str = "90"
    driver_version: int = 13000
    runtime_version: int = 13000
    # Threads and blocks run last first: a result that depends on their order is a race.
    reverse_order: bool = False
    # Runs each kernel twice, in both orders, and raises RaceError where the bits differ.
    check_races: bool = False
    # Raises StreamError where no event orders what two streams do to the same bytes. Kernels are
    # taken to read what is const and to write the rest of their array arguments.
    check_streams: bool = False
    # Each new allocation ends at a page that cannot be touched: reads behind an array fail too.
    guard_pages: bool = False

    @contextmanager
    def using(self, **changes: Any) -> Iterator[Settings]:
        """For the duration of a `with`: `settings.using(device_count=2)`."""
        before = replace(self)
        try:
            for name, value in changes.items():
                if not hasattr(self, name):
                    raise AttributeError(f"[Settings] has no {name!r}")
                setattr(self, name, value)
            yield self
        finally:
            for entry in fields(self):
                setattr(self, entry.name, getattr(before, entry.name))


record = Record()
settings = Settings()
