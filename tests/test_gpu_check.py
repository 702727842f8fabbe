"""scripts/gpu_check.sh without a GPU: what it does with steps that fail, are late or cannot run."""

from __future__ import annotations

import doctest
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import gpu_check
import gpu_report
from gpu_check import Step

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_1"/>
<testcase classname="tests.test_a" name="test_2"><failure message="assert
1 == 2"/></testcase>
<testcase classname="tests.test_b" name="test_3"><skipped message="no MPI"/></testcase>
<testcase classname="tests.test_b" name="test_4"><error message="no memory"/></testcase>
</testsuite></testsuites>"""


def python(program):
    return [sys.executable, "-c", program]


@pytest.fixture
def checked(tmp_path, monkeypatch):
    """Runs the check with other steps; returns its exit status, its report and its text."""

    def run(*steps, arguments=()):
        monkeypatch.setattr(gpu_check, "steps", lambda device, folder: list(steps))
        monkeypatch.setattr(gpu_check, "GRACE", 0.5)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            options = ["--out", str(tmp_path / "out"), "--wheels", str(tmp_path / "none")]
            status = gpu_check.main([*options, *arguments])
        finally:
            signal.signal(signal.SIGTERM, handler)
        report = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
        return status, report, (tmp_path / "out" / "gpu_check.txt").read_text()

    return run


def test_examples_in_docstrings():
    found = doctest.testmod(gpu_check)
    assert found.attempted
    assert not found.failed


def test_a_step_that_fails_does_not_stop_the_others(checked, tmp_path):
    status, report, text = checked(
        Step("a", 60, python("print('one'); print('last words'); raise SystemExit(3)")),
        Step("b", 60, python("print('2 passed, 1 skipped')"), r"\d+ passed.*"),
        Step("c", 60, python("print('0 failed')"), r"\d+ passed"),
        Step("d", 60, ["no such program"], "", "not installed: torch"),
    )
    assert status == 1
    assert not report["passed"]
    found = [(step["name"], step["outcome"], step["reason"]) for step in report["steps"]]
    assert found == [
        ("install", "skipped", "none/ has nothing that is missing"),
        ("a", "failed", "exit status 3; last words"),
        ("b", "passed", "2 passed, 1 skipped"),
        ("c", "failed", "printed no '\\\\d+ passed'; 0 failed"),
        ("d", "skipped", "not installed: torch"),
    ]
    assert "NOT all passed" in text
    output = (tmp_path / "out" / "output.txt").read_text()
    assert "one\nlast words" in output
    assert "== b: " in output


def test_steps_that_pass_or_cannot_run_are_a_success(checked):
    status, report, text = checked(
        Step("a", 60, python("pass")), Step("b", 60, [], "", "there is none")
    )
    assert status == 0
    assert report["passed"]
    assert text.endswith("All passed.\n")


def test_late_steps_get_an_interrupt_and_their_processes_end(checked, tmp_path):
    pid = tmp_path / "pid"
    program = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import signal, time\\n"
    "signal.signal(signal.SIGINT, signal.SIG_IGN)\\ntime.sleep(60)"])
open({str(pid)!r}, "w").write(str(child.pid))
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("so far 5 passed")
"""
    begin = time.monotonic()
    _, report, _ = checked(Step("a", 1.5, python(program)), Step("b", 60, python("pass")))
    assert time.monotonic() - begin < 30
    assert report["steps"][1]["outcome"] == "late"
    assert report["steps"][1]["reason"].endswith("so far 5 passed")
    assert report["steps"][2]["outcome"] == "passed"
    time.sleep(0.2)
    state = Path(f"/proc/{pid.read_text()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_no_step_begins_when_the_time_is_over(checked):
    _, report, _ = checked(
        Step("a", 600, python("import time; time.sleep(60)")), Step("b", 60, python("pass")),
        arguments=["--minutes", "0.05"],
    )  # fmt: skip
    assert [step["outcome"] for step in report["steps"]] == ["skipped", "late", "skipped"]
    assert report["steps"][2]["reason"] == "no time was left"


def test_the_report_is_written_when_somebody_ends_the_check(tmp_path):
    program = f"""
import sys
sys.path.insert(0, {str(Path(gpu_check.__file__).parent)!r})
import gpu_check
sleep = [sys.executable, "-c", "print('begun', flush=True); import time; time.sleep(60)"]
gpu_check.steps = lambda device, folder: [
    gpu_check.Step("first", 60, [sys.executable, "-c", ""]), gpu_check.Step("second", 60, sleep)]
gpu_check.main(["--out", {str(tmp_path)!r}, "--wheels", "none"])
"""
    process = subprocess.Popen(python(program), stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    output = tmp_path / "output.txt"
    while time.monotonic() < end and not (output.exists() and "begun\n" in output.read_text()):
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 1
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [step["name"] for step in report["steps"]] == ["install", "first"]


def test_tests_and_figures_are_in_the_report(tmp_path):
    (tmp_path / "tests.xml").write_text(JUNIT)
    rows = {"seed-tf32": {"error": "no memory"}}
    (tmp_path / "bench.jsonl").write_text(json.dumps({"rows": rows}) + "\n")
    report = gpu_report.report_of([], "gpu", tmp_path)
    assert report["tests"] == {
        "tests": 4,
        "skipped": 1,
        "failed": {
            "tests.test_a::test_2": "assert 1 == 2",
            "tests.test_b::test_4": "no memory",
        },
    }
    text = gpu_report.text_of(report)
    assert "tests: 4, 2 failed, 1 skipped\n  tests.test_a::test_2: assert 1 == 2\n" in text
    assert "seed-tf32: no memory" in text
    (tmp_path / "tests.xml").write_text(JUNIT[:100])
    (tmp_path / "bench.jsonl").write_text("")
    report = gpu_report.report_of([], "gpu", tmp_path)
    assert (report["tests"], report["bench"]) == (None, None)


def test_what_is_missing_is_installed_from_wheels(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "INSTALLED", tmp_path / "installed")
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "wheels"
    folder.mkdir()
    name = "gpu_check_example-1.0"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("gpu_check_example.py", "value = 7\n")
        wheel.writestr(f"{name}.data/data/lib/libmpi.so.40", "")
        program = zipfile.ZipInfo(f"{name}.data/scripts/gpu_check_program")
        program.external_attr = 0o100755 << 16
        wheel.writestr(program, "#!/bin/sh\necho 8\n")
        wheel.writestr(
            f"{name}.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: gpu_check_example\nVersion: 1.0\n",
        )
        wheel.writestr(
            f"{name}.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{name}.dist-info/RECORD", "")
    output = tmp_path / "output.txt"
    result = gpu_check.install(folder, output)
    assert result.outcome == "passed", output.read_text()
    assert result.reason == "gpu_check_example"
    variables = gpu_check.environment()
    show = "import gpu_check_example; print(gpu_check_example.value)"
    command = ["sh", "-c", f"gpu_check_program && {sys.executable} -c '{show}'"]
    run = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert run.stdout == "8\n7\n", run.stderr
    assert Path(variables["MPI4PY_LIBMPI"]).exists()
    assert gpu_check.lacks("gpu_check_example") == ""
    assert gpu_check.install(folder, output).outcome == "skipped"


@pytest.mark.parametrize("device", ["gpu", "emulated"])
def test_the_steps_fit_their_time_and_name_files_that_exist(device, tmp_path):
    steps = gpu_check.steps(device, tmp_path)
    install = 40
    assert sum(step.seconds for step in steps) + install <= 60 * gpu_check.MINUTES < 600
    files = [a for step in steps for a in step.command if a.endswith(".py") or a == "tests"]
    assert len(files) > 5
    for file in files:
        assert (gpu_report.ROOT / file).exists(), file


def test_the_command_says_what_it_would_do(tmp_path):
    command = ["sh", str(Path(gpu_check.__file__).with_suffix(".sh")), "--dry-run", "--only"]
    environment = os.environ | {"PYTHON": sys.executable}
    run = subprocess.run(
        [*command, "doctor,bench"], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    assert "doctor: at most 20 s" in run.stdout
    assert "bench: at most 190 s" in run.stdout
    assert "ranks" not in run.stdout
    run = subprocess.run([*command, "lunch"], capture_output=True, text=True, env=environment)
    assert run.returncode == 2
    assert "'lunch' is none of doctor, tests, ranks, seed, compute-sanitizer" in run.stderr
