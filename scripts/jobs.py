"""Benchmarks on several ranks: a script starts itself again on them; rank 0 returns its report."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
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
    import mpi4py

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
        "mpi4py": mpi4py.__version__,
        "distnn": nn.__version__,
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
