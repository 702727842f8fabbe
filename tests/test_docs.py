"""Programs in README.md and docs/, and examples in docstrings, run as they stand."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import distnn

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = [
    pytest.param(program, id=f"{page.name}-{i}")
    for page in PAGES
    for i, program in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


def test_there_are_programs_to_run():
    assert len(PROGRAMS) >= 3


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_in_the_docs_run(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "program.py", "exec"), {"__name__": "__main__"})


# Programs, which run when they are imported.
NO_MODULES = {"distnn.launcher.worker", "distnn.launcher.start", "distnn.launcher.__main__"}


# Modules that import a package which need not be there.
OPTIONAL = {"distnn.cuda.": "cupy", "distnn.cpu.": "numba"}


def importable(name):
    for prefix, package in OPTIONAL.items():
        if name.startswith(prefix):
            try:
                importlib.import_module(package)
            except ImportError:
                return False
    return True


def examples():
    names = ["distnn", *(m.name for m in pkgutil.walk_packages(distnn.__path__, "distnn."))]
    for name in sorted(filter(importable, set(names) - NO_MODULES)):
        module = importlib.import_module(name)
        for test in doctest.DocTestFinder(exclude_empty=True).find(module):
            if test.examples:
                yield pytest.param(test, id=test.name)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("example", list(examples()))
def test_examples_in_docstrings_run(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = doctest.DocTestRunner().run(example)
    assert result.attempted
    assert not result.failed, capsys.readouterr().out


def test_what_the_page_for_users_of_nnabla_says_is_missing_is_missing():
    missing = (ROOT / "docs/nnabla.md").read_text().partition("## What is not there")[2]
    lists = dict(re.findall(r"^- ([a-z ]+):(.*?)[;.]\n", missing, re.DOTALL | re.MULTILINE))
    places = {"functions": distnn.functions, "parametric functions": distnn.parametric_functions}
    for kind, place in places.items():
        names = re.findall(r"`(\w+)`", lists[kind])
        assert len(names) >= 1
        assert not [name for name in names if hasattr(place, name)]
    for name in re.findall(
        r"`([\w.]+)`", re.sub(r"\(.*?\)", "", lists["modules"], flags=re.DOTALL)
    ):
        with pytest.raises(ImportError):
            importlib.import_module(f"distnn.{name}")
    for path in re.findall(r"`([\w.]+)`", lists["methods"].partition("(")[0]):
        owner, _, name = path.partition(".")
        assert not hasattr(getattr(distnn, owner), name)
