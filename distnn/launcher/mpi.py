"""Which MPI mpi4py uses, and the mpirun that belongs to it.

An mpirun of another MPI starts N programs that each believe to be rank 0 of 1 (mpi4py#155, #280,
#428), so a mismatch is an error here. mpi4py is asked in a child process: the launcher itself
never loads MPI.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .errors import LaunchError

# The vendor is what decides the options of mpirun; names of its mpirun, the surest first.
_NAMES = {
    "Open MPI": ("mpirun.openmpi", "mpirun", "mpiexec"),
    "MPICH": ("mpirun.mpich", "mpiexec.hydra", "mpirun", "mpiexec"),
    "Intel MPI": ("mpirun", "mpiexec.hydra", "mpiexec"),
}
# Seconds; mpi4py on a cold network file system can take long to load.
_PROBE_SECONDS = 120.0

_PROBE = """
import json
try:
    import mpi4py
except ImportError as error:
    print(json.dumps({"missing": str(error)}))
    raise SystemExit
mpi4py.rc.initialize = False
try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:
    print(json.dumps({"broken": str(error)}))
    raise SystemExit
libraries = []
try:
    with open("/proc/self/maps") as maps:
        libraries = [line.split(None, 5)[-1].strip() for line in maps if "/libmpi" in line]
except OSError:
    pass
print(json.dumps({"version": MPI.Get_library_version(), "library": (libraries or [""])[0]}))
"""


@dataclass(frozen=True)
class Mpi:
    """The MPI library that mpi4py loads."""

    vendor: str  # a key of _NAMES
    version: str  # first line of what the library says
    libmpi: str  # its path, "" when the system does not tell


def mpi_of_mpi4py(python: str = sys.executable) -> Mpi:
    """Ask mpi4py, in a child process, for its MPI.

    Raises: LaunchError when mpi4py is missing, finds no MPI, or uses one that is not known here.
    """
    try:
        run = subprocess.run(
            [python, "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_SECONDS
        )
        answer = json.loads(run.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise LaunchError(
            f"importing mpi4py took more than {_PROBE_SECONDS:g} s; "
            f"try `{python} -c 'from mpi4py import MPI'` by hand"
        ) from None
    except (ValueError, IndexError):
        raise LaunchError(
            f"`from mpi4py import MPI` ended {python} with status {run.returncode}:\n{run.stderr}"
        ) from None
    if "missing" in answer:
        raise LaunchError(
            f"mpi4py is not installed for {python} ({answer['missing']}); on a machine with no "
            "MPI of its own `pip install distnn[mpi]`, on a cluster load its MPI and "
            "`pip install mpi4py`"
        )
    if "broken" in answer:
        raise LaunchError(
            f"mpi4py is installed but finds no MPI library ({answer['broken']}); on a cluster "
            "load its MPI (module load ...), elsewhere `pip install distnn[mpi]`"
        )
    version = answer["version"].splitlines()[0].rstrip("\0 ").partition(", package:")[0]
    vendor = vendor_of(answer["version"])
    if vendor is None:
        raise LaunchError(
            f"mpi4py uses {version!r}, whose mpirun is not known here (known: "
            f"{', '.join(_NAMES)}); use its own command: `mpiexec -n N {os.path.basename(python)} "
            "-m distnn.launcher.rank script args`"
        )
    return Mpi(vendor, version, answer["library"])


def vendor_of(text: str) -> str | None:
    """The vendor that `MPI_Get_library_version` or `mpirun --version` speaks of."""
    if "Open MPI" in text or "OpenRTE" in text:
        return "Open MPI"
    if "Intel(R) MPI" in text:
        return "Intel MPI"
    # MVAPICH and MPICH share the Hydra process manager; Cray's MPICH comes without it.
    if ("MPICH" in text or "HYDRA" in text or "MVAPICH" in text) and "CRAY" not in text:
        return "MPICH"
    return None


def find_mpirun(mpi: Mpi, python: str = sys.executable, given: str | None = None) -> str:
    """Path of the mpirun of `mpi`: beside its library, beside `python`, then on PATH.

    Raises: LaunchError naming both MPIs when there is only an mpirun of another one.
    """
    others = []
    candidates = [given] if given else _candidates(mpi, python)
    for path in candidates:
        said = _version_of(path)
        vendor = vendor_of(said)
        if vendor == mpi.vendor:
            return path
        first_line = (said.strip().splitlines() or ["nothing"])[0]
        others.append(f"{path} is of {vendor or 'an unknown MPI'} (it says {first_line!r})")
    if others:
        raise LaunchError(
            f"mpi4py uses {mpi.version!r} ({mpi.libmpi or 'path unknown'}), but "
            f"{'; '.join(others)}: its ranks would not find each other. Put the mpirun of "
            f"{mpi.vendor} on PATH, pass it with --mpirun, or install mpi4py for the other MPI"
        )
    raise LaunchError(
        f"no mpirun for mpi4py's {mpi.version!r} ({mpi.libmpi or 'path unknown'}): none beside "
        "that library, beside Python or on PATH; load your MPI's module, pass --mpirun PATH, or "
        "on a machine with no MPI of its own `pip install distnn[mpi]`"
    )


def _candidates(mpi: Mpi, python: str) -> Iterator[str]:
    folders: list[str] = []
    for library in (mpi.libmpi, os.path.realpath(mpi.libmpi) if mpi.libmpi else ""):
        # .../lib/libmpi.so, .../lib/x86_64-linux-gnu/openmpi/lib/libmpi.so, ...: bin of each parent
        parent = os.path.dirname(library)
        while parent and parent != os.path.dirname(parent):
            parent = os.path.dirname(parent)
            folders.append(os.path.join(parent, "bin"))
    folders.append(os.path.dirname(python))
    folders += os.environ.get("PATH", "").split(os.pathsep)
    for folder in dict.fromkeys(folders):
        for name in _NAMES[mpi.vendor]:
            path = os.path.join(folder, name)
            if folder and os.path.isfile(path) and os.access(path, os.X_OK):
                yield path


def _version_of(path: str) -> str:
    command: Sequence[str] = (path, "--version")
    try:
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return run.stdout + run.stderr
