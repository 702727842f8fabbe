"""Every CUDA source of the package compiles, without a GPU.

Kernels go to machine code. Gradients of elementwise functions are made of the same operations as
the functions; of them the compiler's front end reads every line, which takes a tenth of the time.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nvrtc
import pytest
from cases_solvers import RULES as SOLVERS

_UNIT = 60  # sources of a translation unit
_QUICKLY = "--Ofast-compile=max"  # little optimization
_FRONT_END = "-dlto"  # optimization and machine code are left to a linker

pytestmark = pytest.mark.skipif(bool(nvrtc.missing()), reason=nvrtc.missing())
every_architecture = pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])


@pytest.fixture(scope="module")
def listed():
    """What cuda_sources.py lists."""
    program = Path(__file__).with_name("cuda_sources.py")
    found = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def compile_all(sources, options):
    """Compile (name, source) pairs, many at once; an error begins with the name and the line."""
    units = [merged(sources[i : i + _UNIT]) for i in range(0, len(sources), _UNIT)]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda unit: nvrtc.compile_source(unit, options), units))


def merged(sources):
    """One translation unit: each source in a namespace of its own, includes before them."""
    includes, bodies = set(), []
    for i, (name, source) in enumerate(sources):
        includes.update(re.findall(r"^#include .*$", source, re.MULTILINE))
        body = re.sub(r"^#include .*$", "", source, flags=re.MULTILINE).replace('extern "C" ', "")
        macros = re.findall(r"^#define (\w+)", source, re.MULTILINE)
        bodies += [f"namespace source{i} {{", f'#line 1 "{name}"', body, "}"]
        bodies += [f"#undef {macro}" for macro in macros]
    return "\n".join([*sorted(includes), *bodies])


@every_architecture
def test_every_kernel_compiles(listed, architecture):
    options = [f"-arch={architecture}", _QUICKLY, *listed["options"]]
    compile_all(listed["kernels"], options)


@every_architecture
def test_every_gradient_compiles(listed, architecture):
    options = [f"-arch={architecture}", _FRONT_END, *listed["options"]]
    compile_all(listed["gradients"], options)


@pytest.mark.parametrize("option", [_QUICKLY, _FRONT_END])
def test_a_broken_source_among_good_ones_is_named(listed, option):
    name, source = listed["kernels"][-1]
    broken = source + "\n__device__ int broken() { return undefined; }\n"
    sources = [*listed["kernels"][-3:], ("the broken one", broken), (name, source)]
    with pytest.raises(ValueError, match=r'the broken one\(\d+\): error: .*"undefined"'):
        compile_all(sources, ["-arch=sm_90", option, *listed["options"]])


def test_the_list_holds_functions_gradients_and_solvers_in_all_dtypes(listed):
    kernels = {name for name, _ in listed["kernels"]}
    gradients = {name for name, _ in listed["gradients"]}
    for dtype in ("float16", "float32", "float64"):
        assert {f"mish, {dtype}", f"pow2, {dtype}"} <= kernels
        assert {f"mish_grad_x, {dtype}", f"mish_grad_x_grad_x, {dtype}"} <= gradients
        for name, (make, _) in SOLVERS.items():
            rule = make().rule
            assert any(k.endswith(f" {rule.arrays}, {dtype}") for k in kernels), name
    assert any(name.startswith("multi_tensor: chunk_sums") for name in kernels)
    assert len({source for _, source in listed["kernels"] + listed["gradients"]}) > 700
