"""Making the communicator of a program, under the names of NNabla's module.

Several ranks that were started together never run as single ones here: where they cannot be
connected, that is an error whatever `ignore_error` says.
"""

from __future__ import annotations

from typing import Any

from ..communicators import MultiProcessDataParallelCommunicator
from ..communicators.mpi import started_ranks
from ..context import current_world, set_default_context
from ..errors import CommunicatorError, DistnnError
from ..ext_utils import get_extension_context
from ..logger import logger

__all__ = ["create_communicator", "current_communicator", "single_or_rankzero"]


def create_communicator(
    ignore_error: bool = False, extension_module: str = "cpu", type_config: str = "float"
) -> MultiProcessDataParallelCommunicator | None:
    """Connect the ranks and make their device the default context.

    Args:
        ignore_error: where something fails and this is the only rank, log it and return None. With
            several ranks errors are raised all the same: each would train alone, unnoticed.
        extension_module: what functions run on: "cpu", or "cudnn" for the GPU of this rank.
            NNabla's default is "cudnn".
        type_config: "float", "half" or "double".
    Returns: the communicator; with one rank too.

    >>> comm = create_communicator()
    >>> comm.size, single_or_rankzero(), current_communicator() is comm
    (1, True, True)
    """
    try:
        context = get_extension_context(extension_module, type_config=type_config)
        communicator = MultiProcessDataParallelCommunicator(context)
        communicator.init()
        if extension_module != "cpu":
            context.device_id = "auto"  # by now it is known for sure which rank this is
            context.device_id = str(context.resolve().device)
        set_default_context(context)
        if communicator.size > 1:
            communicator.connect_devices()
    except DistnnError as error:
        if not ignore_error or _several():
            raise
        logger.warning("[create_communicator] this rank runs alone: %s", error)
        return None
    return communicator


def current_communicator() -> Any:
    """The communicator that was connected last; None if there is none."""
    return current_world().communicator


def single_or_rankzero() -> bool:
    """Whether this rank is the one to write files and logs: rank 0, or the only one.

    Raises: CommunicatorError if several ranks were started but are not connected yet: each would
        take itself for the only one.
    """
    communicator = current_communicator()
    if communicator is None:
        if _several():
            raise CommunicatorError(
                "[single_or_rankzero] several ranks were started but there is no communicator yet; "
                "call create_communicator() first"
            )
        return True
    return communicator.rank == 0


def _several() -> bool:
    transport = current_world().transport
    return (started_ranks()[0] if transport is None else transport.size) > 1
