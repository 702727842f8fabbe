"""What can be found out about MPI; `distnn.doctor` runs it as a program.

As a program of its own, since MPI may end a process in which it cannot start. It prints one line
of JSON.
"""

from __future__ import annotations

import ctypes
import json

_LEVELS = ("single", "funneled", "serialized", "multiple")
_MPICH_CUDA = 0  # MPIX_GPU_SUPPORT_CUDA


def facts() -> dict[str, str | bool | None]:
    """Library, thread level, and whether it takes addresses on a GPU (None: it does not say)."""
    from . import mpi

    library = mpi.import_mpi()
    return {
        "library": library.Get_library_version().split("\n")[0].split(",")[0].strip("\0 "),
        "threads": _LEVELS[library.Query_thread()],
        "cuda_aware": _cuda_aware(ctypes.CDLL(library.__file__)),
    }


def _cuda_aware(library: ctypes.CDLL) -> bool | None:
    if hasattr(library, "MPIX_Query_cuda_support"):  # Open MPI
        return bool(library.MPIX_Query_cuda_support())
    if hasattr(library, "MPIX_GPU_query_support"):  # MPICH and its children
        found = ctypes.c_int(0)
        if library.MPIX_GPU_query_support(_MPICH_CUDA, ctypes.byref(found)) == 0:
            return bool(found.value)
    return None


if __name__ == "__main__":
    print(json.dumps(facts()))
