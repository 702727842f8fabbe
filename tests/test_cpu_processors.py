"""scripts/check_processors.py: kernels as processors have them that are not here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture
def checks(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import check_processors

    return check_processors


@pytest.mark.slow
def test_kernels_of_products_and_rows_compile_for_arm():
    """The smallest ones with vectors of their own, and with those that LLVM finds."""
    command = [sys.executable, str(SCRIPTS / "check_processors.py")]
    done = subprocess.run(
        [*command, "--processor", "generic", "--only", "aff"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "generic   affine" in done.stdout
    assert "modules compiled for aarch64" in done.stdout


def test_code_without_vectors_of_neon_is_a_problem(checks):
    head = 'target triple = "x86_64-unknown-linux-gnu"\ntarget datalayout = "e"\n'
    single = head + "define float @f(float %x) {\n %y = fadd float %x, %x\n ret float %y\n}"
    assert "fadd\ts0, s0, s0" in _assembled(checks, single)
    assert not checks.compiles_for_arm([single])
    assert checks.compiles_for_arm([single, single.replace("float", "<4 x float>")])


def test_results_that_differ_are_a_problem(checks, monkeypatch, capsys):
    monkeypatch.setattr(checks, "differences", lambda only: [("good", 1e-7), ("bad", float("nan"))])
    assert checks.check("haswell", "") == 1
    assert "bad" in capsys.readouterr().out.splitlines()[1]


def _assembled(checks, code):
    from llvmlite import binding

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    return checks.assembly(code)
