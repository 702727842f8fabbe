"""Place: which rank this process is and which of how many on its node, before MPI is there.

The variables are set by whoever started the process; their first name that exists counts.
Open MPI and Hydra come before Slurm: their daemons may be Slurm tasks, whose variables the ranks
inherit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_RANK = (
    "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_RANK",
    "PALS_RANKID",
    "PMI_RANK",
    "PMIX_RANK",
    "SLURM_PROCID",
    "RANK",
)
# Only processes that were started as ranks have these.
SIZE_OF_RANKS = (
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "SLURM_STEP_NUM_TASKS",
)
_SIZE = (*SIZE_OF_RANKS, "SLURM_NTASKS", "WORLD_SIZE")
_LOCAL_RANK = (
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "PALS_LOCAL_RANKID",
    "SLURM_LOCALID",
    "LOCAL_RANK",
)
_LOCAL_SIZE = (
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "MV2_COMM_WORLD_LOCAL_SIZE",
    "PALS_LOCAL_SIZE",
    "LOCAL_WORLD_SIZE",
)


@dataclass(frozen=True)
class Place:
    """Rank and size of the job, local_rank and local_size on this node."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    by_srun: bool  # started by Slurm itself, which has bound cores (and perhaps GPUs) already


def place_of(environment: Mapping[str, str]) -> Place | None:
    """Read the place from variables that mpirun or srun sets; None when there are none."""
    rank = _first(environment, _RANK)
    if rank is None:
        return None
    by_mpirun = "OMPI_COMM_WORLD_RANK" in environment or "MPI_LOCALRANKID" in environment
    by_srun = not by_mpirun and "SLURM_PROCID" in environment
    size = _first(environment, _SIZE) or 1
    local_size = _slurm_local_size(environment) if by_srun else _first(environment, _LOCAL_SIZE)
    local_size = local_size or size
    local_rank = _first(environment, _LOCAL_RANK)
    if local_rank is None:
        local_rank = rank % local_size
    return Place(rank, size, local_rank, local_size, by_srun)


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    for name in names:
        if environment.get(name, "").isdigit():
            return int(environment[name])
    return None


def _slurm_local_size(environment: Mapping[str, str]) -> int | None:
    """Tasks on this node from Slurm's `4(x2),3`: two nodes with four tasks, then one with three."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE")
    node = _first(environment, ("SLURM_NODEID",)) or 0
    for tasks, nodes in re.findall(r"(\d+)(?:\(x(\d+)\))?", text or ""):
        node -= int(nodes or 1)
        if node < 0:
            return int(tasks)
    return None
