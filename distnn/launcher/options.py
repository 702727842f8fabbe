"""The command line of `distnn-launch`, checked as far as one machine can check it."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import LaunchError

_EXAMPLES = """\
examples:
  distnn-launch -n 4 train.py --batch-size 64
  distnn-launch -n 16 -H node1:8,node2:8 --log-dir logs --tee 0 train.py
  distnn-launch -n 2 --timeout 600 -m mypackage.train
  distnn-launch -n 8 --mpi-args="--mca pml ob1" train.py
"""


@dataclass(frozen=True)
class Options:
    """What the user asked for; names are those of the command line."""

    np: int
    script: str
    args: tuple[str, ...] = ()
    module: bool = False
    hosts: str | None = None
    hostfile: str | None = None
    bind: str = "auto"
    gpus_per_node: int | None = None
    share_gpu: bool = False
    env: tuple[str, ...] = ()
    timeout: float | None = None
    tee: str = "all"
    log_dir: str | None = None
    mpirun: str | None = None
    mpi_args: tuple[str, ...] = ()
    dry_run: bool = False


def parse(argv: Sequence[str] | None = None) -> Options:
    """Read the command line.

    Raises: LaunchError when a value cannot be used; SystemExit(2) when argparse refuses it.
    """
    values = vars(_parser().parse_args(argv))
    values["args"] = tuple(values["args"])
    values["env"] = tuple(values["env"])
    try:
        values["mpi_args"] = tuple(shlex.split(values["mpi_args"]))
    except ValueError as error:
        raise LaunchError(f"--mpi-args is {values['mpi_args']!r}: {error}; close it") from None
    options = Options(**values)
    _check(options)
    return options


def _check(options: Options) -> None:
    if options.np < 1:
        raise LaunchError(f"-n is {options.np}; pass the number of ranks, 1 or more")
    if options.timeout is not None and not options.timeout > 0:
        raise LaunchError(f"--timeout is {options.timeout:g}; pass seconds, more than 0")
    if options.gpus_per_node is not None and options.gpus_per_node < 0:
        raise LaunchError(f"--gpus-per-node is {options.gpus_per_node}; pass 0 or more")
    if options.hosts and options.hostfile:
        raise LaunchError(
            f"both --hosts {options.hosts} and --hostfile {options.hostfile} are given; pass one"
        )
    for item in options.env:
        if "=" not in item[1:]:
            raise LaunchError(f"--env is {item!r}; pass NAME=VALUE")
    if options.hostfile and not os.path.isfile(options.hostfile):
        raise LaunchError(f"--hostfile {options.hostfile!r} is no file in {os.getcwd()!r}")
    if not options.module and not os.path.exists(options.script):
        raise LaunchError(
            f"script {options.script!r} does not exist in {os.getcwd()!r}; "
            "pass a path to a Python file, or -m and the name of a module"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distnn-launch",
        usage="distnn-launch -n N [options] script [args ...]",
        description="Run a Python program on N ranks over mpirun. When one rank fails, everything "
        "ends, and the last output is that rank's traceback.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-n", "--np", type=int, required=True, metavar="N", help="number of ranks")
    add("-H", "--hosts", help="hosts with their numbers of ranks: node1:8,node2:8")
    add("--hostfile", help="file with hosts, in the format of your MPI (launch/hostfile)")
    add(
        "--bind",
        choices=("auto", "none", "core"),
        default="auto",
        help="cores of a rank: auto, its equal share of the node's; core, one; none, all "
        "(default: %(default)s; with more ranks than cores: none)",
    )
    add("--gpus-per-node", type=int, metavar="N", help="use N GPUs of a node (default: all; 0: no)")
    add("--share-gpu", action="store_true", help="allow more ranks than GPUs on a node")
    add("--env", action="append", default=[], metavar="K=V", help="set in every rank; repeatable")
    add("--timeout", type=float, metavar="SECONDS", help="end the job then, with status 124")
    add(
        "--tee",
        choices=("all", "0", "none"),
        default="all",
        help="ranks whose output is shown here (default: %(default)s)",
    )
    add("--log-dir", metavar="DIR", help="write the output of rank R to DIR/rank-R.log")
    add("--mpirun", metavar="PATH", help="mpirun to use (default: the one of mpi4py's MPI)")
    add("--mpi-args", default="", metavar="ARGS", help='more for mpirun: --mpi-args="--mca K V"')
    add("--dry-run", action="store_true", help="print the mpirun command and end")
    add("-m", "--module", action="store_true", help="script is the name of a module")
    add("script", help="Python file (or module) that every rank runs")
    add("args", nargs=argparse.REMAINDER, help="its arguments")
    return parser
