"""The CPU's kernels as other processors have them: with AVX2 only, and 64-bit ARM with NEON.

Functions run with kernels that are compiled for AVX2 without AVX-512, and then for no particular
processor, which is as they are for ARM: vectors of 4, no fused rounding, no tile registers. Results
and gradients are compared with NumPy's kernels. What was compiled for no particular processor LLVM
then compiles for aarch64: every kernel can be, and uses NEON's vectors; to run it takes such a
machine. Exit status 0 if all is well.

    python scripts/check_processors.py
    python scripts/check_processors.py --only softmax
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

_TRIPLE, _ARM, _NEON = "aarch64-unknown-linux-gnu", "neoverse-n1", "+neon"
# Features of what functions run on here, by LLVM's name.
_PROCESSORS = {"haswell": "+avx,+avx2,+fma,+sse4.2", "generic": ""}
# Relative to the largest result: sums in another order, Winograd's rounding, tanh.
_TOLERANCE = 2e-5


def functions() -> dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]]:
    """What runs: functions of Variables, and the shapes of their inputs."""
    import distnn as nn
    import distnn.functions as F

    def normalized(x: Any, beta: Any, gamma: Any) -> Any:
        running = [nn.Variable((1, x.shape[1], 1, 1)) for _ in range(2)]
        return F.tanh(F.batch_normalization(x, beta, gamma, *running))

    def labels(count: int, n: int) -> Any:
        return nn.Variable.from_numpy_array(np.arange(n).reshape(-1, 1) % count)

    def convolved(**options: Any) -> Callable[..., Any]:
        return lambda x, w: F.convolution(x, w, **options)

    maps, channel = (4, 32, 12, 12), (1, 32, 1, 1)
    return {
        "convolution 3x3": (convolved(pad=(1, 1)), [maps, (32, 32, 3, 3)]),
        "convolution, stride 2": (convolved(stride=(2, 2)), [maps, (32, 32, 5, 5)]),
        "convolution 1x1": (convolved(), [(16, 64, 12, 12), (64, 64, 1, 1)]),
        "convolution, depthwise": (convolved(group=32), [maps, (32, 1, 3, 3)]),
        "batch normalization, tanh": (normalized, [maps, channel, channel]),
        "affine": (F.affine, [(256, 256), (256, 256), (256,)]),
        "layer normalization": (F.layer_normalization, [(64, 256), (1, 256), (1, 256)]),
        "softmax": (F.softmax, [(64, 256)]),
        "cross entropy": (
            lambda x: F.softmax_cross_entropy(x, labels(100, 128)),
            [(128, 100)],
        ),
        "average pooling": (lambda x: F.average_pooling(x, (2, 2)), [maps]),
        "max pooling": (lambda x: F.max_pooling(x, (3, 3), stride=(2, 2)), [maps]),
        "embed": (lambda w: F.embed(labels(100, 64), w), [(100, 128)]),
        "gelu": (F.gelu, [maps]),
    }


def differences(only: str) -> Iterator[tuple[str, float]]:
    """The largest difference of results and gradients between both sorts of kernels."""
    import distnn as nn

    for name, (function, shapes) in functions().items():
        if only not in name:
            continue
        rng = np.random.default_rng(0)
        arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        found: dict[str, list[np.ndarray]] = {}
        for kernels in ("numpy", "numba"):
            nn.set_cpu_kernels(kernels)
            inputs = [nn.Variable.from_numpy_array(a, need_grad=True) for a in arrays]
            y = function(*inputs)
            y.forward()
            y.backward(np.random.default_rng(1).standard_normal(y.shape))
            found[kernels] = [y.d, *(x.g for x in inputs)]
        worst = [
            float(np.abs(a - b).max() / np.abs(b).max())
            for a, b in zip(*found.values(), strict=True)
        ]
        yield name, max(worst)


def kept_code() -> list[str]:
    """LLVM's code of all that is compiled from now on, before it becomes code of this machine."""
    from numba.core import codegen

    codes: list[str] = []
    add = codegen.JITCPUCodegen._add_module

    def noted(self: Any, module: Any) -> Any:
        codes.append(str(module))
        return add(self, module)

    codegen.JITCPUCodegen._add_module = noted
    return codes


def assembly(code: str) -> str:
    """LLVM's code of a kernel as instructions of aarch64."""
    from llvmlite import binding

    target = binding.Target.from_triple(_TRIPLE).create_target_machine(
        cpu=_ARM, features=_NEON, opt=3
    )
    # Numba's own counting of references has been through this machine's code generator before.
    code = code.replace("llvm.x86.atomic.", "x86_atomic_").replace(" immarg", "")
    code = re.sub(r'target triple = ".*"', f'target triple = "{_TRIPLE}"', code)
    code = re.sub(r'target datalayout = ".*"', f'target datalayout = "{target.target_data}"', code)
    return str(target.emit_assembly(binding.parse_assembly(code)))


def check(processor: str, only: str) -> int:
    """The number of problems, which are printed."""
    codes = kept_code()
    problems = 0
    for name, difference in differences(only):
        wrong = not difference < _TOLERANCE
        problems += wrong
        print(f"{processor:10}{name:28}{difference:8.1e}{'  is too much' if wrong else ''}")
    if processor == "generic":
        problems += not compiles_for_arm(codes)
    return problems


def compiles_for_arm(codes: list[str]) -> bool:
    """Whether LLVM finds vectors in it; where it cannot compile it, it ends the process."""
    from llvmlite import binding

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    vectors = sum(len(re.findall(r"\bv\d+\.4s\b", assembly(code))) for code in codes)
    print(f"{len(codes)} modules compiled for {_TRIPLE}; {vectors} operands are vectors of NEON")
    return vectors > 0


def can_run(processor: str) -> bool:
    """Whether code for it runs on this one."""
    extensions = np.show_config(mode="dicts")["SIMD Extensions"]
    found = {name for names in extensions.values() for name in names}
    return processor == "generic" or not found.isdisjoint({"AVX2", "X86_V3", "X86_V4"})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="functions whose names contain this")
    parser.add_argument("--processor", choices=_PROCESSORS, help="one alone")
    parser.add_argument("--worker", choices=_PROCESSORS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        sys.exit(min(1, check(options.worker, options.only)))
    status = 0
    for processor in [options.processor] if options.processor else _PROCESSORS:
        if not can_run(processor):
            print(f"{processor}: this processor cannot run its code")
            continue
        with tempfile.TemporaryDirectory() as folder:  # kernels from disk have no code for LLVM
            chosen = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": _PROCESSORS[processor]}
            environment = os.environ | chosen | {"NUMBA_CACHE_DIR": folder}
            command = [sys.executable, *sys.argv, "--worker", processor]
            status |= subprocess.run(command, env=environment, check=False).returncode
    sys.exit(min(1, abs(status)))


if __name__ == "__main__":
    main()
