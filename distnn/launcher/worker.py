"""Runs the user's program as `python script args` would, and says how it failed.

    python worker.py RECORD PARENT [-m] script args

This file stands alone: the program finds no module of distnn loaded, and the environment as its
supervisor (`rank.py`) has set it. RECORD is a file descriptor for the account of a failure, PARENT
the supervisor's process id; both are -1 where there is none (srun or mpirun without the launcher).
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import io
import json
import os
import runpy
import signal
import sys
import time
import traceback
import types

_PR_SET_PDEATHSIG = 1


def main() -> None:
    if sys.path and sys.path[0] == os.path.dirname(os.path.realpath(__file__)):
        del sys.path[0]  # the program's own folder takes this place, see _run
    record, parent = int(sys.argv[1]), int(sys.argv[2])
    if parent > 0:
        _die_with(parent)
        os.set_inheritable(record, False)
    faulthandler.enable()
    # The launcher asks with SIGQUIT where a rank is that does not end.
    faulthandler.register(signal.SIGQUIT, all_threads=True)
    # stdout is a pipe here, which Python would fill with 8 KiB before anybody sees a line.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    module = sys.argv[3] == "-m"
    arguments = sys.argv[4:] if module else sys.argv[3:]
    process = os.getpid()
    try:
        _run(arguments, module)
    except BaseException as error:
        if os.getpid() != process:
            raise  # a child that the program has forked
        status = _status(error)
        if status != 0:
            _fail(record, error, status)
    if record >= 0 and os.getpid() == process:
        _write(record, {"finished": True})


def _run(arguments: list[str], module: bool) -> None:
    sys.argv = arguments
    if module:
        if not sys.flags.safe_path:
            sys.path.insert(0, os.getcwd())
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        return
    path = os.path.abspath(arguments[0])
    if os.path.isdir(path) or path.endswith((".zip", ".pyz")):
        runpy.run_path(arguments[0], run_name="__main__")
        return
    if not sys.flags.safe_path:
        sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    # A module that stays: pickle, multiprocessing and functions run at exit look it up later.
    program = types.ModuleType("__main__")
    program.__dict__.update(__file__=path, __builtins__=__builtins__, __spec__=None)
    sys.modules["__main__"] = program
    exec(code, program.__dict__)


def _status(error: BaseException) -> int:
    """The exit status Python gives for an uncaught exception."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if not isinstance(error, SystemExit):
        return 1
    if isinstance(error.code, int):
        return error.code & 0xFF
    return 0 if error.code is None else 1


def _fail(record: int, error: BaseException, status: int) -> None:
    """Print the traceback, leave an account of it, and end this process (and with it the job)."""
    frames = error.__traceback__
    while frames is not None and _is_ours(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    error.__traceback__ = frames
    account: dict[str, object] = {"time": time.time(), "status": status}
    account["exception"] = type(error).__name__
    if isinstance(error, SystemExit):
        account["exception"] = f"SystemExit({error.code!r})"
        if not isinstance(error.code, int):
            print(error.code, file=sys.stderr)  # as Python does
    else:
        account["traceback"] = "".join(traceback.format_exception(error))
        with contextlib.suppress(Exception):
            sys.excepthook(type(error), error, frames)  # the user's own where there is one
    if frames is not None:
        last = traceback.extract_tb(frames)[-1]
        account["where"] = f"{last.filename}, line {last.lineno}"
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if record >= 0:
        _write(record, account)
    else:
        _abort(status)
    # Not the ordinary way out: MPI_Finalize, called at exit, waits for ranks that wait for us.
    os._exit(status)


def _write(record: int, account: dict[str, object]) -> None:
    with contextlib.suppress(OSError), open(record, "wb") as file:
        file.write(json.dumps(account).encode() + b"\n")


def _is_ours(filename: str) -> bool:
    return filename in (__file__, runpy.__file__) or filename.startswith("<frozen ")


def _abort(status: int) -> None:
    """End all ranks through MPI. Needed only without a launcher, which does that by itself."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.COMM_WORLD.Abort(status)


def _die_with(parent: int) -> None:
    """Have the system kill this process when its supervisor dies, killed by whomever."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


main()
