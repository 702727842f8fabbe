"""The start of one rank: its cores, GPU and environment, then the user's program.

    mpirun -n 4 --bind-to none python -m distnn.launcher.rank --bind auto train.py

Under `distnn-launch` a supervisor stays around the program (`supervisor.py`). Without it, as above
or under srun, this process becomes the program; an uncaught exception then ends all ranks by
MPI_Abort instead of leaving the others waiting for ever.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from . import cores, gpus, place, protocol, shm
from .errors import LaunchError
from .place import Place

WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")


@dataclass(frozen=True)
class RankOptions:
    """The part of `distnn-launch`'s command line that every rank acts on."""

    script: str
    args: list[str]
    module: bool
    bind: str
    gpus_per_node: int | None
    share_gpu: bool
    env: list[str]
    tee: str
    log_dir: str | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one rank; returns only where a supervisor stays, with the program's exit status."""
    options = _parse(argv)
    launcher = os.environ.pop(protocol.VARIABLE, None)
    here = place.place_of(os.environ)
    if launcher is not None:
        from .supervisor import Supervisor

        return Supervisor(options, launcher, here).run()
    here = here or Place(rank=0, size=1, local_rank=0, local_size=1, by_srun=False)
    try:
        environment = prepare(here, options)
    except LaunchError as error:
        print(f"[distnn-launch] rank {here.rank}: {error}", file=sys.stderr)
        return 2
    os.execve(sys.executable, command(options, record=-1, parent=-1), environment)


def command(options: RankOptions, record: int, parent: int) -> list[str]:
    """The command that runs the user's program in this rank."""
    program = [*(["-m"] if options.module else []), options.script, *options.args]
    return [sys.executable, WORKER, str(record), str(parent), *program]


def prepare(here: Place, options: RankOptions, shared: str | None = None) -> dict[str, str]:
    """Bind this process to its cores; return the environment of the program.

    Args:
        shared: folder for shared memory between ranks, where this job has one.
    Raises: LaunchError when the node has too few GPUs.
    """
    environment = {**os.environ, **dict(item.split("=", 1) for item in options.env)}
    if options.share_gpu:
        environment[gpus.SHARE_VARIABLE] = "1"
    shared_gpu = gpus.sharing_is_allowed(environment)
    device = gpus.visible_device(here, environment, options.gpus_per_node, shared_gpu)
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    threads = str(_bind(here, options.bind))
    # A user who sets OMP_NUM_THREADS means all threads; distnn reads it after its own variable.
    if "OMP_NUM_THREADS" not in environment:
        environment.setdefault("DISTNN_NUM_THREADS", threads)
        environment["OMP_NUM_THREADS"] = threads
    if shared is not None:
        for name in shm.VARIABLES:
            environment.setdefault(name, shared)
    return environment


def _bind(here: Place, bind: str) -> int:
    """Take this rank's cores; return how many threads suit it."""
    mine = cores.available()
    if bind == "given" or here.by_srun:
        return len(mine)
    share = cores.share(mine, here.local_rank, here.local_size, bind)
    if share is None:
        return 1
    if bind != "none":
        cores.bind_to(share)
    return len(share)


def _parse(argv: Sequence[str] | None) -> RankOptions:
    parser = argparse.ArgumentParser(
        prog="python -m distnn.launcher.rank",
        description="Run a Python program as one rank of a job that mpirun or srun has started.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--bind",
        choices=("auto", "core", "none", "given"),
        default="given",
        help="cores: auto, an equal share of those this process may use; core, one of them; none, "
        "all of them; given, all of them, and they are this rank's alone (default: %(default)s)",
    )
    add("--gpus-per-node", type=int, metavar="N", help="use N GPUs of this node (0: none)")
    add("--share-gpu", action="store_true", help="allow more ranks than GPUs")
    add("--env", action="append", default=[], metavar="K=V", help="set for the program")
    add("--tee", choices=("all", "0", "none"), default="all", help="ranks whose output is shown")
    add("--log-dir", metavar="DIR", help="with distnn-launch: write output to DIR/rank-R.log")
    add("-m", "--module", action="store_true", help="script is the name of a module")
    add("script", help="Python file (or module)")
    add("args", nargs=argparse.REMAINDER, help="its arguments")
    return RankOptions(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
