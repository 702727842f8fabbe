"""What this machine has for training, and what to install for what it lacks.

    python -m distnn.doctor

Exit status 0 where training on the CPU works; all else is optional. Libraries that may end a
process in which they cannot start are looked at in processes of their own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .launcher.gpus import count_gpus, driver_version

_PATIENCE = 120.0  # seconds for one process
_OF_MPI = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "MPI_", "SLURM_")


@dataclass(frozen=True)
class Finding:
    """One line of the report, and what to do about it."""

    name: str
    text: str
    good: bool = True
    advice: str = ""

    def __str__(self) -> str:
        mark = "  " if self.good else "! "
        lines = [f"{mark}{self.name:<18}{self.text}"]
        if self.advice:
            lines.append(f"{'':<20}-> {self.advice}")
        return "\n".join(lines)


def main() -> int:
    """Print the report; returns the exit status."""
    try:
        for title, section in _SECTIONS:
            print(title)
            for finding in _found(title, section):
                print(finding, flush=True)
            print()
        error = training_error()
    except Exception as problem:  # a report that is not complete is better than none
        error = f"{type(problem).__name__}: {problem}"
    if error:
        print(f"Training on the CPU does not work: {error}")
        return 1
    print("Training on the CPU works: one step gave the right numbers.")
    return 0


def _found(title: str, section: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a section; where it fails that is one of them."""
    try:
        yield from section()
    except Exception as error:
        yield Finding(title, f"cannot be looked at: {type(error).__name__}: {error}", good=False)


# -- the CPU --------------------------------------------------------------------------------------


def _base() -> Iterator[Finding]:
    yield Finding("Python", f"{platform.python_version()} on {platform.platform()}")
    from . import __version__

    yield Finding("distnn", __version__)
    yield Finding("NumPy", _version("numpy") or "unknown version")
    yield Finding("BLAS of NumPy", _blas())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("cores", f"{usable} of {os.cpu_count()} for this process")
    yield _numba()
    yield _package("h5py", "h5py", "parameter files of NNabla (.h5)", "pip install 'distnn[io]'")
    yield _package("safetensors", "safetensors", "parameter files", "pip install 'distnn[io]'")


def _numba() -> Finding:
    from .kernels import get_cpu_kernels, numba_problem

    problem = numba_problem()
    if problem is not None:
        advice = "for compiled kernels on the CPU: pip install 'distnn[cpu]'"
        return Finding("Numba", problem.removeprefix("Numba is "), False, advice)
    used = {"numba": "Numba's", "numpy": "NumPy's"}[get_cpu_kernels()]
    return Finding("Numba", f"{_version('numba')}; functions on the CPU use {used} kernels")


def _blas() -> str:
    import numpy  # noqa: F401 - loads the library that is looked for
    import threadpoolctl

    found = [lib for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"]
    return (
        ", ".join(
            f"{lib['internal_api']} {lib['version'] or ''} for {lib.get('architecture', 'any CPU')}"
            for lib in found
        )
        or "none that is known"
    )


def training_error() -> str:
    """What goes wrong in a step of training on the CPU; empty if nothing does."""
    try:
        import numpy as np

        from . import functions as F
        from .context import World, world_scope
        from .solvers import Sgd
        from .variable import Variable

        with world_scope(World()):
            w = Variable.from_numpy_array(np.array([[1.0], [2.0]], np.float32), need_grad=True)
            x = Variable.from_numpy_array(np.array([[3.0, 4.0]], np.float32))
            solver = Sgd(0.5)
            solver.set_parameters({"w": w})
            loss = F.sum(F.affine(x, w))
            loss.forward()
            solver.zero_grad()
            loss.backward()
            solver.update()
            if float(loss.d) != 11 or w.d.ravel().tolist() != [-0.5, 0.0]:
                return f"a step gave loss {float(loss.d)} and weights {w.d.ravel().tolist()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


# -- GPUs -----------------------------------------------------------------------------------------


def _gpu() -> Iterator[Finding]:
    driver, count = driver_version(), count_gpus()
    extra = "cuda12" if driver and int(driver.split(".")[0]) < 580 else "cuda13"
    install = f"pip install 'distnn[{extra}]'"
    if driver:
        yield Finding("NVIDIA driver", f"{driver}, which shows {count} GPU{'s' * (count != 1)}")
    else:
        yield Finding(
            "NVIDIA driver",
            "none",
            False,
            "for a GPU: NVIDIA's driver, 580 or later for cuda13, 525 or later for cuda12",
        )
    if importlib.util.find_spec("cupy") is None:
        yield Finding("CuPy", "not installed", False, f"for GPUs: {install}")
    else:
        yield from _with_cupy(_ask("distnn.cuda.facts"), install)
    yield _package("cuDNN frontend", "nvidia-cudnn-frontend", "fast convolutions", install)
    yield _package("ml_dtypes", "ml_dtypes", "bfloat16 on the host", install)
    yield _package("nvmath", "nvmath-python", "products that add a bias as they store", install)


def _with_cupy(facts: Mapping[str, Any], install: str) -> Iterator[Finding]:
    if "error" in facts:
        yield Finding("CuPy", facts["error"], False, f"{install} into a new environment")
        return
    names = {"cupy": "CuPy", "runtime": "CUDA runtime", "compiler": "NVRTC", "cublas": "cuBLAS"}
    for key, name in names.items():
        yield _fact(name, facts[key], install)
    devices = facts["devices"]
    if isinstance(devices, dict):
        yield Finding("GPUs", devices["error"].rpartition("[Context] ")[2], False)
    else:
        for number, gpu in enumerate(devices):
            text = (
                f"{gpu['name']}, compute capability {gpu['capability']}, "
                f"{gpu['free'] / 2**30:.1f} of {gpu['total'] / 2**30:.1f} GiB free"
            )
            yield Finding(f"GPU {number}", text)
    yield _fact("NCCL", facts["nccl"], f"for several GPUs: {install}")
    yield _fact("cuDNN", facts["cudnn"], f"for fast convolutions: {install}")


def _fact(name: str, fact: Any, advice: str) -> Finding:
    if isinstance(fact, dict):
        return Finding(name, fact["error"], False, advice)
    return Finding(name, fact)


# -- several processes ----------------------------------------------------------------------------


def _mpi() -> Iterator[Finding]:
    install = (
        "for several processes: pip install 'distnn[mpi]' on a machine with no MPI of its own, "
        "pip install mpi4py for the MPI that is there"
    )
    version = _version("mpi4py")
    if version is None:
        yield Finding("mpi4py", "not installed", False, install)
        return
    yield Finding("mpi4py", version)
    facts = _ask("distnn.communicators.mpi_facts")
    if "error" in facts:
        yield Finding("MPI", facts["error"], False, install)
        return
    yield Finding("MPI", facts["library"])
    enough = facts["threads"] in ("serialized", "multiple")
    yield Finding("thread level", facts["threads"], enough, "" if enough else "use another MPI")
    aware = {True: "yes", False: "no", None: "it does not say"}[facts["cuda_aware"]]
    yield Finding("CUDA-aware MPI", f"{aware}; distnn does not need it")
    from .launcher.place import place_of

    place = place_of(os.environ)
    if place is not None:
        yield Finding("this process", f"rank {place.rank} of {place.size}")


# -- inside ---------------------------------------------------------------------------------------


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str, distribution: str, purpose: str, install: str) -> Finding:
    version = _version(distribution)
    if version is None:
        return Finding(name, "not installed", False, f"for {purpose}: {install}")
    return Finding(name, version)


def _ask(module: str) -> dict[str, Any]:
    """The line of JSON that a module prints; {"error": why} where it does not."""
    # Not as a rank of whatever job this process belongs to.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_OF_MPI)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", module],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"it did not start within {_PATIENCE:g} seconds"}
    lines = done.stdout.strip().split("\n")
    try:
        return json.loads(lines[-1])
    except ValueError:
        last = done.stderr.strip().split("\n")[-1] or "it said nothing"
        return {"error": f"its process ended with status {done.returncode}: {last}"}


_SECTIONS: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
    ("Base", _base),
    ("GPUs", _gpu),
    ("Several processes", _mpi),
)

if __name__ == "__main__":
    sys.exit(main())
