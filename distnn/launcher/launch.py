"""`distnn-launch` from the command line to the exit status."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Sequence

from . import command, mpi
from .errors import LaunchError
from .job import Job
from .options import parse
from .output import warn


def launch(argv: Sequence[str] | None = None) -> int:
    """Run `distnn-launch`; returns its exit status: that of the first failing rank, or 0."""
    try:
        options = parse(argv)
        library = mpi.mpi_of_mpi4py()
        mpirun = mpi.find_mpirun(library, given=options.mpirun)
        machine = command.Machine.this(os.environ)
        local = command.is_local(options, machine, socket.gethostname())
        words = command.build(library, mpirun, options, machine, local)
        if options.dry_run:
            print(shlex.join(words))
            return 0
        if options.log_dir is not None:
            _make_folder(options.log_dir)
    except LaunchError as error:
        warn(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    environment = {**os.environ, **dict(item.split("=", 1) for item in options.env)}
    if "SLURM_JOB_ID" in environment:
        # mpirun starts its daemons by srun, which may bind each to one core, and so our ranks.
        environment["SLURM_CPU_BIND"] = "none"
    sys.stdout.flush()
    return Job(words, environment, options.np, local, options.timeout).run()


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise LaunchError(f"--log-dir {path!r} cannot be made: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise LaunchError(f"--log-dir {path!r} may not be written by this user")
