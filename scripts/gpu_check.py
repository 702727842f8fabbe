"""What gpu_check.sh runs: steps, each with a time of its own, and a report of all of them.

A step that fails or is late does not stop the others. Late steps get Ctrl-C first, so that pytest
still says what it found. The standard library is enough to begin with: what is missing is a
finding.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpu_report import ROOT, Result, report_of, text_of

INSTALLED = ROOT / "build" / "gpu_check"
GRACE = 10.0  # seconds between Ctrl-C and the end of a step that is late
MINUTES = 9.5  # of all steps together, as their times are given below


class Step(NamedTuple):
    """A command, its time, what it must print, and why it cannot run here."""

    name: str
    seconds: float
    command: list[str]
    wanted: str = ""  # regular expression; what it finds last is said in the report
    obstacle: str = ""


# Without CuPy's pool each array has an allocation of its own, whose ends the sanitizer knows.
SANITIZED = (
    "import sys, cupy, pytest; cupy.cuda.set_allocator(None); sys.exit(pytest.main(sys.argv[1:]))"
)


def steps(device: str, folder: Path) -> list[Step]:
    """All steps, in order; pytest and bench_gpu.py leave files in `folder` for the report."""
    python = sys.executable
    emulated = device == "emulated"
    program = ["-m", "gpu_emulator"] if emulated else []
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--device", device]
    tests = [f"--junitxml={folder / 'tests.xml'}"]
    tests += ["tests/test_cuda_engine.py"] if emulated else ["tests"]
    if lacks("xdist") == "":
        tests += ["-n", str(min(8, len(os.sched_getaffinity(0))))]
    ranks = [python, "-m", "distnn.launcher", "-n", "2", "--share-gpu", "--tee", "0"]
    several = ["--with-mpi", "-m", "mpi", "tests/test_mixed_precision_training.py"]
    kernels = [f"tests/test_cuda_{topic}.py" for topic in ("elementwise", "pooling", "indexing")]
    sanitizer = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    digits = ["examples/digits_data_parallel.py", "-c", "cudnn", "--epochs"]
    digits += ["1", "--batch-size", "500"] if emulated else ["3"]
    seed = ["examples/static_vs_dynamic.py", "-c", "cudnn", "--epochs"]
    tiny = ["1", "--depth", "1", "--width-scale", "0.1", "--batch-size", "1024"]
    seed += tiny if emulated else ["3"]
    bench = ["--device", device, "--seconds", "180", "--output", str(folder / "bench.jsonl")]
    bench += ["--rows", "kernels"] if emulated else []
    mpi, training = lacks("mpi4py", "pytest_mpi"), lacks("threadpoolctl", "sklearn")
    return [
        Step("doctor", 20, [python, "-m", "distnn.doctor"], "Training on the CPU works"),
        Step(
            "tests", 170, [python, *pytest, *tests], r"\d+ passed.*",
            lacks("pytest", "pytest_mpi", "hypothesis", "threadpoolctl"),
        ),
        Step("ranks, tests", 45, [*ranks, *pytest, *several], r"\d+ passed.*", mpi),
        Step(
            "ranks, training", 30, [*ranks, *program, *digits],
            "accuracy .* parameters of all ranks are identical", mpi or training,
        ),
        Step(
            "seed network", 35, [python, *program, *seed],
            "static and dynamic losses are bit-identical", training,
        ),
        Step(
            "compute-sanitizer", 40,
            [sanitizer or "", "--error-exitcode", "9", python, "-c", SANITIZED, *pytest[2:],
             *kernels],
            "ERROR SUMMARY: 0 errors",
            "" if sanitizer and not emulated else "there is no compute-sanitizer",
        ),
        Step("bench", 190, [python, "scripts/bench_gpu.py", *bench], "", lacks("torch")),
    ]  # fmt: skip


# -- what is missing ------------------------------------------------------------------------------


def lacks(*modules: str) -> str:
    """Which of the modules cannot be imported, as the reason of a step that needs them."""
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def is_installed(package: str) -> bool:
    """Whether this Python, or an earlier check, has installed the package."""
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def missing(wheels: Iterable[Path], installed: Callable[[str], bool]) -> list[Path]:
    """Wheels of packages that are not installed; the last of several versions.

    >>> names = ["a_b-1.0-py3-none-any.whl", "a_b-1.1-py3-none-any.whl", "c-2-py3-none-any.whl"]
    >>> [path.name for path in missing(map(Path, names), lambda name: name == "c")]
    ['a_b-1.1-py3-none-any.whl']
    """
    found = {path.name.split("-")[0]: path for path in sorted(wheels)}
    return [path for name, path in found.items() if not installed(name)]


def install(wheels: Path, output: Path) -> Result:
    """Install what is missing and has a wheel.

    It goes into a prefix of its own, not by --target, which would leave out Open MPI's libraries.
    """
    needed = missing(wheels.glob("*.whl"), is_installed)
    if not needed:
        return Result("install", "skipped", 0.0, f"{wheels.name}/ has nothing that is missing")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--ignore-installed", "--no-compile", "--prefix", str(INSTALLED)]
    step = Step("install", 40, [*command, *map(str, needed)])
    result = carry_out(step, step.seconds, dict(os.environ), output)
    find_installed()
    names = ", ".join(path.name.split("-")[0] for path in needed)
    return result._replace(reason=f"{names} {result.reason}".rstrip())


def find_installed() -> list[str]:
    """Let this program see what is in INSTALLED too; in which folder that is differs by system."""
    folders = [str(path) for path in INSTALLED.glob("**/*-packages")]
    sys.path += [folder for folder in folders if folder not in sys.path]
    importlib.invalidate_caches()
    return folders


def environment() -> dict[str, str]:
    """Of all steps: this package, the tests' modules, and what was installed."""
    paths = [str(ROOT), str(ROOT / "tests"), *find_installed(), os.environ.get("PYTHONPATH", "")]
    found = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PATH": os.pathsep.join([str(INSTALLED / "bin"), os.environ["PATH"]]),
        "PYTHONUNBUFFERED": "1",
    }
    library = INSTALLED / "lib" / "libmpi.so.40"
    return found | ({"MPI4PY_LIBMPI": str(library)} if library.exists() else {})


# -- running --------------------------------------------------------------------------------------


def run(command: Sequence[str], variables: dict[str, str], seconds: float, log: Any) -> int | None:
    """Exit status of a command whose output goes to the log; None if it was late."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=log,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(seconds)
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        return None
    finally:  # also when this program is told to end
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def carry_out(step: Step, seconds: float, variables: dict[str, str], output: Path) -> Result:
    """Run a step for at most `seconds`; its output is added to the file."""
    if step.obstacle or seconds < 1:
        return Result(step.name, "skipped", 0.0, step.obstacle or "no time was left")
    begin = time.monotonic()
    with output.open("ab") as log:
        log.write(f"\n== {step.name}: {' '.join(step.command)}\n".encode())
        log.flush()
        start = log.tell()
        status = run(step.command, variables, seconds, log)
    took = time.monotonic() - begin
    text = output.read_bytes()[start:].decode(errors="replace")
    found = re.findall(f".*{step.wanted}", text)
    last = (re.findall(r"\d+ failed.*", text) or text.strip().splitlines() or [""])[-1][:120]
    if status is None:
        return Result(step.name, "late", took, f"ended after {seconds:.0f} s; {last}")
    if status:
        return Result(step.name, "failed", took, f"exit status {status}; {last}")
    if not found:
        return Result(step.name, "failed", took, f"printed no {step.wanted!r}; {last}")
    return Result(step.name, "passed", took, found[-1].strip() if step.wanted else "")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="See scripts/gpu_check.sh.")
    parser.add_argument("--only", help="steps, with commas between their first words")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all steps")
    parser.add_argument("--dry-run", action="store_true", help="say what would run")
    device = os.environ.get("DEVICE", "gpu")
    parser.add_argument("--device", default=device, choices=["gpu", "emulated"])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu_check")))
    parser.add_argument("--wheels", type=Path, default=ROOT / ".whl")
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    find_installed()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planned = chosen(steps(options.device, folder), options.only, parser)
        if options.dry_run:
            return dry_run(planned, options)
        options.out.mkdir(parents=True, exist_ok=True)
        output = options.out / "output.txt"
        output.write_bytes(b"")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the report is still written
        results: list[Result] = []
        try:
            results.append(install(options.wheels, output))
            print(results[-1], flush=True)
            variables = environment()
            # Again: some could not run before.
            for step in chosen(steps(options.device, folder), options.only, parser):
                budget = step.seconds * options.minutes / MINUTES
                left = end - time.monotonic() - GRACE
                results.append(carry_out(step, min(budget, left), variables, output))
                print(results[-1], flush=True)
        finally:
            report = report_of(results, options.device, folder)
            (options.out / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n")
            text = text_of(report)
            (options.out / "gpu_check.txt").write_text(text)
            print(f"\n{text}", flush=True)
    return 0 if report["passed"] else 1


def chosen(everything: list[Step], only: str | None, parser: argparse.ArgumentParser) -> list[Step]:
    """The steps that --only names."""
    names = {step.name: step.name.split(",")[0].split()[0] for step in everything}
    wanted = list(names.values()) if only is None else only.split(",")
    for name in wanted:
        if name not in names.values():
            parser.error(f"--only {name!r} is none of {', '.join(dict.fromkeys(names.values()))}")
    return [step for step in everything if names[step.name] in wanted]


def dry_run(everything: list[Step], options: argparse.Namespace) -> int:
    """Say what would run, for how long, and what cannot."""
    needed = missing(options.wheels.glob("*.whl"), is_installed)
    print(f"install: {', '.join(path.name for path in needed) or 'nothing'}")
    for step in everything:
        seconds = step.seconds * options.minutes / MINUTES
        print(f"{step.name}: at most {seconds:.0f} s\n    {' '.join(step.command)}")
        if step.obstacle:
            print(f"    would be skipped: {step.obstacle}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
