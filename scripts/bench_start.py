"""How long a program waits before it trains with compiled CPU kernels: the first time, and later.

A fresh process imports distnn, builds a network and runs an iteration: with an empty folder of
compiled kernels ("first"), and with what that has left there ("later"). What starting costs is the
time from the import on to the end of the first iteration, without what an iteration takes. Prints
one JSON line; medians of the later starts.

    python scripts/bench_start.py >> benchmarks/start.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = {"small network": 2, "seed network": 30}  # layers
BATCH = 256
GATES = {"first": 20.0, "later": 1.5}  # seconds that a start may cost


def start(depth: int) -> dict[str, float]:
    """Seconds from the import to the end of the first iteration, and of a later one."""
    begin = time.perf_counter()
    import numpy as np

    import distnn as nn
    import distnn.functions as F
    import distnn.solvers as S

    imported = time.perf_counter()
    sys.path.insert(0, str(ROOT / "examples"))
    from static_vs_dynamic import cnn

    nn.set_cpu_kernels("numba")
    rng = np.random.default_rng(0)
    x, t = nn.Variable((BATCH, 1, 8, 8)), nn.Variable((BATCH, 1))
    x.d, t.d = rng.standard_normal(x.shape), rng.integers(0, 10, t.shape)
    loss = F.mean(F.softmax_cross_entropy(cnn(x, depth, 1.0, lambda i: False), t))
    solver = S.Adam()
    solver.set_parameters(nn.get_parameters())

    def iterate() -> None:
        loss.forward(clear_no_need_grad=True)
        solver.zero_grad()
        loss.backward(clear_buffer=True)
        solver.update()

    iterate()
    until_trained = time.perf_counter() - begin
    iterate()  # from now on as a program
    iteration = time.perf_counter()
    iterate()
    iteration = time.perf_counter() - iteration
    return {
        "import": imported - begin,
        "until_trained": until_trained,
        "iteration": iteration,
        "start": until_trained - iteration,
    }


def measured(depth: int, folder: str) -> Any:
    """What `start` finds in a fresh process."""
    command = [sys.executable, __file__, "--worker", str(depth)]
    environment = os.environ | {"NUMBA_CACHE_DIR": folder}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
    )
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="of later starts")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(start(options.worker)))
        return
    from jobs import machine, rounded

    report: dict[str, Any] = {"benchmark": "start", **machine(), "batch": BATCH}
    for name, depth in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            first = measured(depth, folder)
            later = [measured(depth, folder) for _ in range(options.repeats)]
        report[name] = {
            "first": first,
            "later": {key: median(found[key] for found in later) for key in first},
        }
        kinds = report[name]
        kinds["gates_met"] = {kind: kinds[kind]["start"] <= gate for kind, gate in GATES.items()}
    print(json.dumps(rounded(report)))


if __name__ == "__main__":
    main()
