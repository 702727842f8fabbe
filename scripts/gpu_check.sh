#!/bin/sh
# Everything that needs a GPU, in one command that takes at most ten minutes: what the machine has,
# all tests on the GPU, two ranks that share it, the seed network, compute-sanitizer, benchmarks
# beside PyTorch. Needs a Python with CuPy, pytest and PyTorch (PYTHON=...; default python3); other
# packages that it lacks are installed from wheels in .whl/, without a network. Writes
# gpu_check.json, gpu_check.txt and output.txt into $OUT (default gpu_check/).
#
#     sh scripts/gpu_check.sh                    # --only tests,bench; --minutes 20; --dry-run
#     DEVICE=emulated sh scripts/gpu_check.sh    # some of it on the emulator, without a GPU
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" scripts/gpu_check.py "$@"
