"""GPUs of ranks beside a transport of host memory: connected by NCCL, or by way of the host.

Headers, and whatever else ranks agree on, always travel over the host. Arrays of a GPU go over
NCCL, which is given nothing but them; where ranks share a GPU or have no NCCL, over page-locked
memory and the host. No MPI is ever given an address on a device: those from pip cannot use it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ..errors import CommunicatorError
from ..launcher.gpus import SHARE_VARIABLE
from ..logger import logger
from ..transfer import on_host
from .board import Board
from .fifo import Ticket
from .transport import Collectives, Header, Transport

# The first NCCL that connects ranks on one GPU, where NCCL_MULTI_RANK_GPU_ENABLE=1 asks for it.
_SEVERAL_ON_ONE_GPU = 23003


class DeviceRanks(Collectives, Protocol):
    """How the GPUs of ranks exchange arrays."""

    def failure(self) -> str | None:
        """What has failed on the device since it was queued."""

    def abort(self) -> None:
        """End what is under way on the device."""


class DeviceTransport:
    """A transport of host memory that moves arrays of GPUs as well.

    The GPUs are connected when the first array on one is exchanged, by all ranks together.
    """

    def __init__(self, host: Transport, told: set[str] | None = None) -> None:
        self.host = host
        self._told: set[str] = set() if told is None else told  # what the user knows; of all groups
        self._gpus: DeviceRanks | None = None
        self._device = 0  # its number here
        self._parts: list[DeviceTransport] = []
        self.queues = False  # collectives of GPUs have only been queued when they return
        self.rank = host.rank
        self.size = host.size
        self.local_rank = host.local_rank
        self.polled_bytes = host.polled_bytes

    @property
    def check(self) -> Callable[[], None] | None:
        return self.host.check

    @check.setter
    def check(self, check: Callable[[], None] | None) -> None:
        self.host.check = check

    @property
    def ticket(self) -> Ticket | None:
        return self.host.ticket

    @ticket.setter
    def ticket(self, ticket: Ticket | None) -> None:
        self.host.ticket = ticket

    def connect_gpus(self) -> DeviceRanks:
        """Connect the current devices of the ranks, if they are not yet; all ranks call it.

        Raises: CommunicatorError, on all ranks, where ranks share a GPU that did not ask for it, or
            where NCCL cannot connect them.
        """
        if self._gpus is None:
            from ..cuda import ranks, staging

            host = self.host
            own = ranks.facts()
            mine = json.dumps(own).encode()
            facts = [json.loads(text) for text in host.all_gather_bytes(mine)]
            obstacle = no_nccl(facts)
            self._device = own["device"]
            self.queues = obstacle is None
            if obstacle is None:
                self._gpus = ranks.connect_by_nccl(host)
            else:
                if host.rank == 0 and "staging" not in self._told:
                    logger.warning(
                        "GPUs exchange arrays by way of the host's memory, which is much slower "
                        "than NCCL: %s",
                        obstacle,
                    )
                self._told.add("staging")
                self._gpus = staging.StagedRanks(host)
        return self._gpus

    def _of(self, array: Any) -> Any:
        """What moves this array."""
        if on_host(array):
            return self.host
        gpus = self._gpus or self.connect_gpus()
        if array.device.id != self._device:
            raise CommunicatorError(
                f"[NCCL] an array lies on GPU {array.device.id} but this rank was connected to the "
                f"others with GPU {self._device}; use one GPU in a process, "
                "nn.set_default_context(get_extension_context('cudnn', device_id='auto'))"
            )
        return gpus

    def all_reduce(self, array: Any, operation: str) -> None:
        self._of(array).all_reduce(array, operation)

    def reduce(self, array: Any, root: int) -> None:
        self._of(array).reduce(array, root)

    def broadcast(self, array: Any, root: int) -> None:
        self._of(array).broadcast(array, root)

    def all_gather(self, array: Any, out: Any) -> None:
        self._of(array).all_gather(array, out)

    def reduce_scatter(self, parts: Any, out: Any) -> None:
        self._of(out).reduce_scatter(parts, out)

    def all_to_all(self, parts: Sequence[Any], out: Sequence[Any]) -> None:
        self._of(out[0]).all_to_all(parts, out)

    def scatter(self, parts: Any, out: Any, root: int) -> None:
        self._of(out).scatter(parts, out, root)

    def largest(self, numbers: Header) -> Header:
        return self.host.largest(numbers)

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        return self.host.all_gather_bytes(data)

    def barrier(self) -> None:
        self.host.barrier()

    def subset(self, ranks: Sequence[int]) -> DeviceTransport | None:
        found = self.host.subset(ranks)
        if found is None:
            return None
        part = DeviceTransport(found, self._told)
        self._parts.append(part)
        return part

    def board(self) -> Board:
        return self.host.board()

    def failure(self) -> str | None:
        """What has failed on the device since it was queued; None while all goes well."""
        return None if self._gpus is None else self._gpus.failure()

    def abort(self, status: int) -> None:
        self._abort_gpus()
        self.host.abort(status)

    def give_up(self) -> None:
        # Kernels of NCCL wait for other ranks for ever, and whoever waits for the device with them.
        self._abort_gpus()
        self.host.give_up()

    def _abort_gpus(self) -> None:
        for part in self._parts:
            part._abort_gpus()
        if self._gpus is not None:
            self._gpus.abort()


def no_nccl(facts: Sequence[Mapping[str, Any]]) -> str | None:
    """Why ranks cannot use NCCL; None if they can.

    Args:
        facts: of each rank, see cuda.ranks.facts.
    Raises: CommunicatorError where ranks share a GPU that did not ask for it.
    """
    users: dict[tuple[str, str, str], list[int]] = {}
    for rank, found in enumerate(facts):
        key = (found["host"], found["gpu"], found["identifier"])
        users.setdefault(key, []).append(rank)
    shared = {gpu: ranks for gpu, ranks in users.items() if len(ranks) > 1}
    for (host, gpu, _), ranks in shared.items():
        # Ranks that are threads of one process are there to be tested, on whatever is there.
        threads = len({facts[rank]["process"] for rank in ranks}) == 1
        if not threads and not all(facts[rank]["shares"] for rank in ranks):
            raise CommunicatorError(
                f"[connect] ranks {_listed(ranks)} on {host} use the same GPU, {gpu} (device "
                f"{facts[ranks[0]]['device']} of rank {ranks[0]}); start at most one rank for each "
                "GPU, with distnn-launch or get_extension_context('cudnn', device_id='auto'), "
                f"which give each rank its own; or set {SHARE_VARIABLE}=1 (distnn-launch "
                "--share-gpu) to let them share it, which is slower"
            )
    missing = [rank for rank, found in enumerate(facts) if not found["nccl"]]
    if missing:
        return (
            f"NCCL is missing on rank {_listed(missing)}; pip install 'distnn[cuda13]' (or cuda12)"
        )
    several = all(f["several_on_one"] and f["nccl"] >= _SEVERAL_ON_ONE_GPU for f in facts)
    if shared and not several:
        (host, gpu, _), ranks = next(iter(shared.items()))
        return f"ranks {_listed(ranks)} on {host} share {gpu}"
    return None


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))


def with_gpus(transport: Transport) -> Transport:
    """The transport, which then moves arrays of GPUs too; one rank needs nothing."""
    return transport if transport.size == 1 else DeviceTransport(transport)
