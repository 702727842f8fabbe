"""Connecting the GPUs of ranks: what each says of itself, and NCCL between them."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import cupy

from ..errors import CommunicatorError
from ..launcher.gpus import sharing_is_allowed
from . import nccl
from .nccl import NcclError, NcclRanks

if TYPE_CHECKING:
    from ..communicators.transport import Transport


def facts() -> dict[str, Any]:
    """What the other ranks must know of this one's current device."""
    device = cupy.cuda.runtime.getDevice()
    properties = cupy.cuda.runtime.getDeviceProperties(device)
    name = properties["name"]
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "device": device,
        "gpu": f"{name.decode() if isinstance(name, bytes) else name} at "
        f"{cupy.cuda.runtime.deviceGetPCIBusId(device)}",
        # Parts of one GPU (MIG) have one address and identifiers of their own.
        "identifier": bytes(properties.get("uuid", b"")).hex(),
        "nccl": nccl.version(),
        "shares": sharing_is_allowed(os.environ),
        "several_on_one": os.environ.get("NCCL_MULTI_RANK_GPU_ENABLE") == "1",
    }


def connect_by_nccl(host: Transport) -> NcclRanks:
    """NCCL between the current devices of the ranks; they all call it.

    Raises: CommunicatorError, on all ranks, that names those on which NCCL failed, and why.
    """
    identifier = b""
    found: NcclRanks | None = None
    error = ""
    try:
        if host.rank == 0:
            identifier = nccl.unique_id()
    except NcclError as failure:
        error = str(failure)
    identifier = host.all_gather_bytes(identifier)[0]
    if identifier:
        try:
            found = NcclRanks(identifier, host.rank, host.size)
        except NcclError as failure:
            error = str(failure)
    errors = [text.decode() for text in host.all_gather_bytes(error.encode())]
    failed = [f"rank {rank}: {text}" for rank, text in enumerate(errors) if text]
    if failed or found is None:
        if found is not None:
            found.abort()
        raise CommunicatorError(
            f"[connect] NCCL cannot connect the GPUs of the ranks ({'; '.join(failed)}); run again "
            "with NCCL_DEBUG=INFO to see why, and python -m distnn.doctor on each machine"
        )
    return found
