"""The report of gpu_check.py: what steps, pytest and bench_gpu.py said."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Result(NamedTuple):
    """How a step ended."""

    name: str
    outcome: str  # passed, failed, late, skipped
    seconds: float
    reason: str

    def __str__(self) -> str:
        return f"{self.name:<22}{self.outcome:<9}{self.seconds:6.1f} s  {self.reason}".rstrip()


def report_of(results: Sequence[Result], device: str, folder: Path) -> dict[str, Any]:
    """Everything in one object; pytest and bench_gpu.py have left files in `folder`."""
    commit = ""
    if shutil.which("git"):
        command = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "check": "gpu",
        "device": device,
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
        "passed": all(result.outcome in ("passed", "skipped") for result in results),
        "steps": [result._asdict() for result in results],
        "tests": tests_of(folder / "tests.xml"),
        "bench": bench_of(folder / "bench.jsonl"),
    }


def tests_of(path: Path) -> dict[str, Any] | None:
    """What pytest found, by its JUnit file; None if it did not come to write one."""
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return None
    failed = {}
    for case in cases:
        problems = [case.find(kind) for kind in ("failure", "error")]
        for problem in problems:
            if problem is not None:
                name = f"{case.get('classname')}::{case.get('name')}"
                failed[name] = problem.get("message", "")[:300]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {"tests": len(cases), "skipped": skipped, "failed": failed}


def bench_of(path: Path) -> dict[str, Any] | None:
    """The line that bench_gpu.py wrote; None if it did not."""
    try:
        return json.loads(path.read_text().splitlines()[-1])
    except (OSError, IndexError, json.JSONDecodeError):
        return None


def text_of(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"GPU check of {report['commit'] or 'this version'}, device {report['device']}", ""]
    lines += [str(Result(**step)) for step in report["steps"]]
    if report["tests"] is not None:
        found = report["tests"]
        count = f"{found['tests']}, {len(found['failed'])} failed, {found['skipped']} skipped"
        lines += ["", f"tests: {count}"]
        lines += [f"  {n}: {' '.join(why.split())[:160]}" for n, why in found["failed"].items()]
    if report["bench"] is not None:
        with contextlib.suppress(ImportError):
            from bench_gpu import table

            lines += ["", table(report["bench"]["rows"])]
    lines += ["", "All passed." if report["passed"] else "NOT all passed; output.txt has more."]
    return "\n".join(lines) + "\n"
