"""The exchange on its own: bandwidth, cost of a call, overlap with backward. Prints one JSON line.

40 MB in 100 arrays beside hand-written Allreduce calls of mpi4py (one, and the best of several
chunk sizes); a 400-byte array beside a raw Allreduce; the header; and how much of the exchange is
hidden behind a backward that leaves the core free (an emulated accelerator: it sleeps) and behind
ones that are bound by Python, also with an emulated link between the ranks. Everything alternates
in one run; run it on a quiet machine.

    python scripts/bench_allreduce.py --ranks 2 >> benchmarks/allreduce.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from jobs import ROOT, machine, rounded, run

ARRAYS, SIZE = 100, 100_000  # of the large exchange: 40 MB of float32
LAYERS = 16  # that they come from, where they come from layers
LINK = 1e9  # bytes per second, emulated
CHUNKS_MB = (1, 2, 4, 5, 10, 20)
GATES = {  # name: (what it is, at most or at least, limit)
    "over_best_chunked": ("at most", 1.1),
    "plain_over_ours": ("at least", 1.8),
    "overhead_microseconds": ("at most", 20.0),
    "accelerator_hidden": ("at least", 0.75),
    "accelerator_prediction_error": ("at most", 0.1),
    "python_prediction_error": ("at most", 0.1),
    "header_share_of_seed_step": ("at most", 0.01),
}


# -- what is computed from measurements ------------------------------------------------------------


def chain(ready: Sequence[float], durations: Sequence[float]) -> float:
    """End of the last bucket: start_i = max(ready_i, end_{i-1}), end_i = start_i + t_i.

    >>> chain([1, 2, 10], [3, 3, 3])
    13
    """
    end = 0.0
    for begin, duration in zip(ready, durations, strict=True):
        end = max(begin, end) + duration
    return end


def hidden_share(computation: float, communication: float, both: float) -> float:
    """Share of the smaller one that ran behind the other one; all in seconds.

    >>> hidden_share(0.030, 0.008, 0.032)
    0.75
    """
    return round((computation + communication - both) / min(computation, communication), 9)


def gates(report: dict[str, Any]) -> dict[str, bool]:
    """Which gates a report passes."""
    return {
        name: report[name] <= limit if kind == "at most" else report[name] >= limit
        for name, (kind, limit) in GATES.items()
        if name in report
    }


# -- measurements, on the ranks --------------------------------------------------------------------


class Bench:
    """The ranks, connected, and clocks that all of them start together."""

    def __init__(self, repeats: int) -> None:
        import distnn.communicators as C

        self.comm = C.MultiProcessDataParallelCommunicator()
        self.comm.init()
        from mpi4py import MPI

        self.mpi = MPI
        self.raw = MPI.COMM_WORLD.Dup()
        self.repeats = repeats

    def slowest(self, seconds: float) -> float:
        """The largest of the ranks' times: the step is over when all are."""
        return self.raw.allreduce(seconds, self.mpi.MAX)

    def timed(self, work: Callable[[], Any]) -> float:
        self.raw.Barrier()
        begin = time.perf_counter()
        work()
        return self.slowest(time.perf_counter() - begin)

    def alternating(self, kinds: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
        """Seconds of each kind, `repeats` times in turns, after two rounds to warm up."""
        found: dict[str, list[float]] = {name: [] for name in kinds}
        for k in range(self.repeats + 2):
            for name, work in kinds.items():
                seconds = self.timed(work)
                if k >= 2:
                    found[name].append(seconds)
        return found

    # -- bandwidth and cost of a call --------------------------------------------------------------

    def large(self) -> dict[str, float]:
        import distnn as nn

        gradients = parameters("large", [(SIZE,)] * ARRAYS)
        # The same memory for all: what was used just before is in a cache.
        home = gradients[0]._storage.home
        flat = home.memory[home.start : home.start + ARRAYS * SIZE]
        apart = [nn.NdArray.from_numpy_array(np.zeros(SIZE, np.float32)) for _ in range(ARRAYS)]

        def chunked(megabytes: float) -> None:
            step = int(megabytes * 1e6 / 4)
            for i in range(0, flat.size, step):
                self.raw.Allreduce(self.mpi.IN_PLACE, flat[i : i + step])

        kinds: dict[str, Callable[[], Any]] = {
            "plain": lambda: self.raw.Allreduce(self.mpi.IN_PLACE, flat),
            "ours": lambda: self.comm.all_reduce(gradients),
            "ours_apart": lambda: self.comm.all_reduce(apart),
        }
        for m in CHUNKS_MB:
            kinds[f"chunks_{m}_mb"] = lambda m=m: chunked(m)
        times = self.alternating(kinds)
        report: dict[str, float] = {}
        for suffix, statistic in (("", median), ("_min", min)):
            found = {k: statistic(values) for k, values in times.items()}
            best = min(found[f"chunks_{m}_mb"] for m in CHUNKS_MB)
            report |= {f"{k}_milliseconds{suffix}": 1e3 * v for k, v in found.items()}
            report[f"over_best_chunked{suffix}"] = found["ours"] / best
            report[f"apart_over_best_chunked{suffix}"] = found["ours_apart"] / best
            report[f"plain_over_ours{suffix}"] = found["plain"] / found["ours"]
        return report

    def small(self, calls: int = 200) -> dict[str, float]:
        import distnn as nn
        from distnn.communicators.header import Count, Schedule, exchange

        flat = np.zeros(100, np.float32)
        array = nn.NdArray.from_numpy_array(flat)
        transport = self.comm._transport("bench_allreduce")
        schedule = Schedule("header", ["100 float32"])

        def times(call: Callable[[], Any]) -> Callable[[], None]:
            def work() -> None:
                for _ in range(calls):
                    call()

            return work

        found = self.alternating(
            {
                "raw": times(lambda: self.raw.Allreduce(self.mpi.IN_PLACE, flat)),
                "ours": times(lambda: self.comm.all_reduce(array)),
                "header": times(lambda: exchange(transport, Count(), schedule)),
            }
        )
        each = {k: 1e6 * median(values) / calls for k, values in found.items()}
        report = {f"{k}_microseconds": v for k, v in each.items()}
        report["overhead_microseconds"] = each["ours"] - each["raw"]
        return report

    # -- overlap -----------------------------------------------------------------------------------

    def overlap(
        self,
        name: str,
        backward: Callable[[Any], Any],
        gradients: list[Any],
        pack_size: int,
        on_core: bool = False,
        comm: Any = None,
    ) -> dict[str, float]:
        """Step with exchange beside computation alone and exchange alone, and the model of it.

        Args:
            on_core: backward keeps the core busy. Where the rank has one only, the exchange, which
                by the memory of one machine is work as well, adds to it.
        """
        callback = (comm or self.comm).all_reduce_callback(gradients, pack_size)
        clock = Clock()
        ready: list[list[float]] = []
        durations: list[list[float]] = []
        reports = []

        def computation() -> None:
            backward(clock)
            latest, times = 0.0, []
            for bucket in callback.buckets:
                latest = max(latest, *(clock.times[id(item._storage)] for item in bucket))
                times.append(latest)
            ready.append(times)

        def communication() -> None:
            callback.begin([g._storage for g in gradients], None)
            callback.finish()
            durations.append([t.end - t.begin for t in callback.report().buckets])

        def both() -> None:
            backward(callback)
            reports.append(callback.report())

        kinds = {"computation": computation, "communication": communication, "both": both}
        found = {k: median(values) for k, values in self.alternating(kinds).items()}
        # A gradient is complete when it is on the slowest rank.
        times = [self.slowest(median(values)) for values in zip(*ready, strict=True)]
        if on_core and len(os.sched_getaffinity(0)) == 1:
            predicted = found["computation"] + found["communication"]
        else:
            predicted = chain(times, [median(values) for values in zip(*durations, strict=True)])
            predicted = max(predicted, found["computation"])
        report = {f"{k}_milliseconds": 1e3 * v for k, v in found.items()}
        report |= {
            "hidden": hidden_share(*(found[k] for k in kinds)),
            "hidden_by_report": median([r.hidden for r in reports[2:]]),
            "exposed_milliseconds": 1e3 * median([r.exposed for r in reports[2:]]),
            "predicted_milliseconds": 1e3 * predicted,
            "prediction_error": abs(predicted / found["both"] - 1),
            "buckets": len(callback.buckets),
        }
        return {f"{name}_{k}": v for k, v in report.items()}

    def accelerator(self, seconds: float = 0.05) -> dict[str, float]:
        """Layers whose backward is a sleep: the core is free."""
        return self.large_layers("accelerator", lambda: time.sleep(seconds / LAYERS))

    def python_link(self, seconds: float = 0.05) -> dict[str, float]:
        """Layers whose backward is Python code, and a link of LINK bytes per second."""
        import distnn.communicators as C
        from distnn.communicators import mpi
        from distnn.context import current_world

        def compute() -> None:
            end = time.thread_time() + seconds / LAYERS
            while time.thread_time() < end:
                pass

        current_world().transport = C.Throttled(mpi.connect(), LINK)
        comm = C.MultiProcessDataParallelCommunicator()
        comm.init()
        report = self.large_layers("python_link", compute, comm)
        # The link's time can be hidden, not that of a core which computes.
        return {k: v for k, v in report.items() if "predict" not in k}

    def large_layers(
        self, name: str, compute: Callable[[], None], comm: Any = None
    ) -> dict[str, float]:
        """40 MB of gradients from layers each of which takes the time of `compute`."""
        gradients = parameters(name, [(ARRAYS * SIZE // LAYERS,)] * LAYERS)

        def backward(callback: Any) -> None:
            callback.begin([g._storage for g in gradients], None)
            for g in reversed(gradients):
                compute()
                g._storage.written()
                callback.ready(g._storage)
            callback.finish()

        return self.overlap(name, backward, gradients, 2 * ARRAYS * SIZE // LAYERS, comm=comm)

    def python(self, layers: int = 300) -> dict[str, float]:
        """Many tiny layers: backward holds the interpreter lock nearly all of the time."""
        import distnn as nn
        import distnn.functions as F
        import distnn.parametric_functions as PF

        with nn.parameter_scope("python"):
            x = nn.Variable((4, 16))
            x.d = 0
            h = x
            for k in range(layers):
                h = F.tanh(PF.affine(h, 16, name=str(k)))
            loss = F.sum(h)
            gradients = [p.grad for p in nn.get_parameters().values()]
        loss.forward()
        return self.overlap(
            "python",
            lambda callback: loss.backward(communicator_callbacks=callback),
            gradients,
            layers * 272 // 8,
            on_core=True,
        )


class Clock:
    """A callback that only notes when gradients are complete."""

    def begin(self, coming: Any, plan: Any) -> None:
        self.times: dict[int, float] = {}
        self._begin = time.perf_counter()

    def ready(self, storage: Any) -> None:
        self.times[id(storage)] = time.perf_counter() - self._begin

    def finish(self) -> None:
        pass


def parameters(scope: str, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    """Gradients, all zero, of parameters of these shapes; neighbours in memory."""
    import distnn as nn

    with nn.parameter_scope(scope):
        found = [
            nn.parameter.get_parameter_or_create(str(k), shape) for k, shape in enumerate(shapes)
        ]
    for parameter in found:
        parameter.grad.fill(0)
        parameter.grad.data  # noqa: B018  written to memory now
    return [parameter.grad for parameter in found]


def measure(repeats: int) -> dict[str, float]:
    bench = Bench(repeats)
    report = bench.large() | bench.small() | bench.accelerator() | bench.python()
    report |= bench.python_link()
    bench.comm.barrier()
    return report if bench.comm.rank == 0 else {}


def seed_step() -> float | None:
    """Seconds of a float32 step of the seed network on one rank, as bench_seed.py measured last."""
    results = ROOT / "benchmarks" / "seed.jsonl"
    if not results.exists():
        return None
    rows = map(json.loads, results.read_text().splitlines())
    found = [r["static_seconds"] for r in rows if r.get("precision", "highest") == "highest"]
    return found[-1] if found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        report = measure(options.repeats)
        if report:
            Path(options.worker).write_text(json.dumps(report))
        return
    report = {"benchmark": "allreduce", **machine(), "ranks": options.ranks}
    report |= run(options.ranks, __file__, ["--repeats", str(options.repeats)])
    step = seed_step()
    if step is not None:
        report["header_share_of_seed_step"] = report["header_microseconds"] * 1e-6 / step
    report["passed"] = gates(report)
    print(json.dumps(rounded(report)))


if __name__ == "__main__":
    main()
