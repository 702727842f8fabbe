"""The mpirun command: Open MPI's, MPICH's and Intel MPI's words for the same things."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from . import cores, protocol
from .errors import LaunchError
from .mpi import Mpi
from .options import Options

START = os.path.join(os.path.dirname(os.path.abspath(__file__)), "start.py")

# Variables that say that a batch system has chosen the hosts; mpirun asks it for them.
_ALLOCATION = ("SLURM_JOB_ID", "PBS_NODEFILE", "LSB_JOBID", "PE_HOSTFILE")
_OPENMPI_BINDING = ("--bind-to", "-bind-to", "--map-by", "-map-by", "--cpus-per-proc")
_OPENMPI_MAPPING = (
    *("--map-by", "-map-by", "--oversubscribe", "-oversubscribe"),
    *("-N", "--npernode", "-npernode", "--ppr", "--rankfile", "-rf"),
)
_HYDRA_BINDING = ("-bind-to", "--bind-to", "-binding")


@dataclass(frozen=True)
class Machine:
    """What the command depends on besides the user's wishes."""

    cores: int  # physical cores of this machine that the launcher may use
    root: bool
    allocated: bool  # inside an allocation of a batch system

    @classmethod
    def this(cls, environment: Mapping[str, str]) -> Machine:
        """The machine and the environment that the launcher runs in."""
        allocated = any(name in environment for name in _ALLOCATION)
        return cls(len(cores.available()), os.geteuid() == 0, allocated)


def is_local(options: Options, machine: Machine, hostname: str) -> bool:
    """True if all ranks certainly run on this machine."""
    if options.hosts:
        names = {host.partition(":")[0] for host in options.hosts.split(",")}
        return names <= {"localhost", "127.0.0.1", hostname}
    return not options.hostfile and not machine.allocated


def build(
    mpi: Mpi, mpirun: str, options: Options, machine: Machine, local: bool = True
) -> list[str]:
    """The whole command, from mpirun to the arguments of the user's program.

    Args:
        local: all ranks run on this machine, where they inherit the launcher's environment.
    Raises: LaunchError when this MPI cannot express `options`.
    """
    if mpi.vendor == "Open MPI":
        words = [*_openmpi(options, machine, local), *options.mpi_args]
        bound = _has(options.mpi_args, _OPENMPI_BINDING)
    else:
        intel = mpi.vendor == "Intel MPI"
        words = [*_hydra(options, intel), *options.mpi_args]
        bound = _has(options.mpi_args, _HYDRA_BINDING)
    # Who tells mpirun how to bind has given the ranks their cores.
    return [mpirun, *words, *_rank_command(options, "given" if bound else options.bind)]


def _openmpi(options: Options, machine: Machine, local: bool) -> Iterator[str]:
    if machine.root:
        yield "--allow-run-as-root"
    yield from ("-n", str(options.np))
    if options.hosts:
        yield from ("--host", options.hosts)
    elif options.hostfile:
        yield from ("--hostfile", options.hostfile)
    if not _has(options.mpi_args, _OPENMPI_MAPPING):
        # Neighbouring ranks on one node. Where hosts are named, their slots count, not our cores.
        choice = options.hosts or options.hostfile or machine.allocated
        crowded = not choice and options.np > machine.cores
        yield from ("--map-by", "slot:OVERSUBSCRIBE" if crowded else "slot")
    if not _has(options.mpi_args, _OPENMPI_BINDING):
        yield from ("--bind-to", "none")  # cores.py binds
    if not local:
        yield from ("-x", protocol.VARIABLE)


def _hydra(options: Options, intel: bool) -> Iterator[str]:
    yield from ("-n", str(options.np))
    if options.hosts and intel:
        yield from _intel_hosts(options.hosts)
    elif options.hosts:
        yield from ("-hosts", options.hosts)
    elif options.hostfile:
        yield from ("-machinefile" if intel else "-f", options.hostfile)
    yield "-genvall"
    if not _has(options.mpi_args, _HYDRA_BINDING):
        # Intel MPI binds inside MPI_Init, after we have done it; MPICH's Hydra before us.
        yield from ("-genv", "I_MPI_PIN", "0") if intel else ("-bind-to", "none")


def _intel_hosts(hosts: str) -> Iterator[str]:
    names, counts = [], set()
    for host in hosts.split(","):
        name, _, count = host.partition(":")
        names.append(name)
        counts.add(count)
    if len(counts) > 1:
        raise LaunchError(
            f"--hosts is {hosts}, but Intel MPI takes one number of ranks for all hosts there; "
            "pass --hostfile with a line `host:ranks` for each"
        )
    yield from ("-hosts", ",".join(names))
    if counts != {""}:
        yield from ("-ppn", counts.pop())


def _rank_command(options: Options, bind: str) -> Iterator[str]:
    yield from (sys.executable, START, "--bind", bind)
    if options.gpus_per_node is not None:
        yield from ("--gpus-per-node", str(options.gpus_per_node))
    if options.share_gpu:
        yield "--share-gpu"
    for item in options.env:
        yield from ("--env", item)
    if options.tee != "all":
        yield from ("--tee", options.tee)
    if options.log_dir is not None:
        yield from ("--log-dir", os.path.abspath(options.log_dir))
    if options.module:
        yield "-m"
    yield from (options.script, *options.args)


def _has(words: tuple[str, ...], options: tuple[str, ...]) -> bool:
    return any(word.partition("=")[0] in options for word in words)
