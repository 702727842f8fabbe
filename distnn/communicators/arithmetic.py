"""Do the ranks compute alike on the CPU? Other kernels, or other processors, round otherwise.

Ranks with other kernels are an error: what they add up to decide something (norms to clip by) would
differ, and those with slow kernels would make all others wait without a word. Other processors or
libraries are a warning, since many clusters are mixed; where bits are promised they are an error.
"""

from __future__ import annotations

import json
import logging

from .. import autotune, processor
from ..context import Context, get_current_context
from ..errors import CommunicatorError, MissingExtraError
from ..kernels import get_cpu_kernels, numba_problem, numba_version
from .header import by_rank
from .transport import Transport

logger = logging.getLogger("distnn")

_KERNELS = "kernels"


def compare_arithmetic(transport: Transport, context: Context | None) -> str:
    """What differs between the ranks that compute on the CPU, with their numbers; usually nothing.

    Args:
        context: in which this rank will compute; None: the current one.
    Raises: CommunicatorError, on all ranks, where their kernels are of different sorts.
    """
    if transport.size == 1:
        return ""
    on_cpu = all(c.backend[0].startswith("cpu") for c in (context, get_current_context()) if c)
    mine = json.dumps(described() if on_cpu else {})
    everybodys = [json.loads(found) for found in transport.all_gather_bytes(mine.encode())]
    differences = {}
    for name in dict.fromkeys(name for found in everybodys for name in found):
        texts = {rank: found.get(name, "") for rank, found in enumerate(everybodys) if found}
        if len(set(texts.values())) > 1:
            differences[name] = by_rank(texts)
    if _KERNELS in differences:
        raise CommunicatorError(
            f"[init] the CPU's kernels are {differences[_KERNELS]}; install the same on all "
            "machines, pip install 'distnn[cpu]', or choose the same kernels on all ranks, for "
            "example by mpirun -x DISTNN_CPU_KERNELS=numpy"
        )
    text = ". ".join(f"{name}: {who}" for name, who in differences.items())
    if text and transport.rank == 0:
        logger.warning("[init] ranks round differently, so bits depend on the rank. %s", text)
    return text


def share_choices(transport: Transport) -> None:
    """Let what rank 0 has chosen by timing hold for all ranks."""
    if transport.size > 1:
        mine = json.dumps(autotune.get_autotune_choices() if transport.rank == 0 else {})
        autotune.replace(json.loads(transport.all_gather_bytes(mine.encode())[0]))


def described() -> dict[str, str]:
    """What this rank's arithmetic on the CPU depends on."""
    from .. import __version__

    problem = numba_problem()
    try:
        kernels = get_cpu_kernels()
    except MissingExtraError:  # was asked for
        kernels = "numba"
    found = {
        _KERNELS: kernels if problem is None else f"{kernels} ({problem})",
        "distnn": __version__,
        "processor": processor.model(),
        **processor.libraries(),
    }
    if problem is None and kernels == "numba":
        found["Numba"] = str(numba_version())
    return found
