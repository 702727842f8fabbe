"""A folder in /dev/shm for one job on one node: what killed ranks leave there goes with it.

Open MPI puts `sm_segment.<host>.*` (16 MB) into /dev/shm, and leaves it there when rank 0 is
killed. In a folder of the job's own it can be removed without asking whose it is.
"""

from __future__ import annotations

import fcntl
import os
import shutil

_ROOT = "/dev/shm"
# Where Open MPI 5 places shared memory between ranks, and that of MPI windows.
VARIABLES = ("OMPI_MCA_btl_sm_backing_directory", "OMPI_MCA_osc_sm_backing_directory")


def folder_of(job: str) -> str:
    """Path of the folder of a job on any node."""
    return os.path.join(_ROOT, f"distnn-{os.getuid()}-{job}")


class SharedFolder:
    """The job's folder while a rank of this node uses it; who leaves last removes it."""

    def __init__(self, job: str) -> None:
        """Raises: OSError when /dev/shm is missing or may not be written."""
        self.path = folder_of(job)
        while True:
            os.makedirs(self.path, mode=0o700, exist_ok=True)
            try:
                self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            try:
                if os.path.samestat(os.stat(self.path), os.fstat(self._lock)):
                    return
            except FileNotFoundError:
                pass
            # Somebody left last, and removed it, between the two lines above: once more.
            os.close(self._lock)

    def leave(self) -> None:
        """Give up the folder. The system does so for a rank that is killed."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # other ranks are still inside
            pass
        else:
            remove(self.path)
        os.close(self._lock)


def remove(path: str) -> None:
    """Remove the folder at `path` with all segments in it."""
    shutil.rmtree(path, ignore_errors=True)
