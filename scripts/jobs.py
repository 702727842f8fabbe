"""What benchmarks share: where they run, and how a script starts itself again on several ranks."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def run(ranks: int, script: str, arguments: list[str], timeout: float = 1800) -> Any:
    """Run `script arguments --worker FILE` on ranks; returns what rank 0 wrote as JSON to FILE."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "distnn.launcher", "-n", str(ranks), "--tee", "none"]
        command += ["--timeout", str(timeout), script, *arguments, "--worker", str(result)]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
            )
        }
        subprocess.run(command, check=True, stdout=sys.stderr, env=environment)
        return json.loads(result.read_text())


def rounded(value: Any) -> Any:
    """Floats to four digits, anywhere in a report."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def machine() -> dict[str, Any]:
    """Where and with what a benchmark ran."""
    import distnn as nn

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    model = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
        "cpu": model[0] if model else platform.processor(),
        "cores": cores(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "mpi4py": installed("mpi4py"),
        "numba": installed("numba"),
        "cpu_kernels": nn.get_cpu_kernels(),
        "distnn": nn.__version__,
    }


def gpu() -> dict[str, Any]:
    """The first GPU, as the driver describes it, and what runs on it."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        text = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        text = ""
    facts = [part.strip() for part in text.splitlines()[0].split(",")] if text else [None] * 3
    found: dict[str, Any] = dict(zip(("gpu", "driver", "gpu_memory"), facts, strict=False))
    for name, packages in {
        "cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
        "cudnn_frontend": ("nvidia-cudnn-frontend",),
        "cudnn": ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12"),
        "torch": ("torch",),
    }.items():
        found[name] = next((v for p in packages if (v := installed(p))), None)
    return found


def installed(package: str) -> str | None:
    """Version of an installed package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
