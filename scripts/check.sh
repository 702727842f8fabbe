#!/bin/sh
# All checks on a fresh machine (Python 3.11 and pip are enough): lint, types, tests on one process,
# the GPU backend as far as it goes without a GPU, then the MPI tests on 2 and 4 ranks. Ends with
# what was skipped and why.
set -eu
cd "$(dirname "$0")/.."
extras=cpu,mpi,io,examples,test,cuda-sources
. scripts/environment.sh
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT

step() {
    printf '\n== %s\n' "$1"
}

step "lint"
ruff check --quiet .
ruff format --check --quiet .

step "types"
mypy

# run COMMAND...: shows the output, keeps it for the summary, and fails as the command fails.
run() {
    { "$@" || touch "$log/failed"; } 2>&1 | tee -a "$log/output"
    [ ! -e "$log/failed" ]
}

step "tests on one process"
run python -m pytest -q -p no:cacheprovider tests

step "function table with compiled CPU kernels, at all sizes"
table="(definition and not double) or backward_agrees or static_dynamic"
run python -m pytest -q -p no:cacheprovider --device numba tests/test_functions.py -k "$table"

step "all CUDA sources, by NVIDIA's compiler, for sm_80 and sm_90"
run python -m pytest -q -p no:cacheprovider --device emulated tests/test_cuda_sources.py

if command -v g++ > /dev/null; then
    step "GPU backend on the emulator: its own tests, and beside them the function table"
    emulated="python -m pytest -q -p no:cacheprovider --device emulated"
    { $emulated tests/test_functions.py -k "$table" > "$log/table" 2>&1 || touch "$log/failed"; } &
    plans="tests/test_program.py tests/test_fusion.py tests/test_record.py tests/test_recompute.py"
    own=$(ls tests/test_cuda_*.py tests/test_gpu_emulator.py $plans | grep -v test_cuda_sources)
    run $emulated $own || true
    wait
    cat "$log/table"
    cat "$log/table" >> "$log/output"
    [ ! -e "$log/failed" ]
    no_emulator=
else
    no_emulator="GPU backend: not run on the emulator, which needs g++ to compile CUDA sources for the CPU."
fi

for ranks in 2 4; do
    step "MPI tests on $ranks ranks"
    run distnn-launch -n "$ranks" --timeout 600 --tee 0 \
        -m pytest -q -p no:cacheprovider --with-mpi -m mpi tests
done

step "skipped"
# What needs --with-mpi or a device in the first run was run by the steps after it.
grep -ah 'SKIPPED' "$log/output" | grep -av -e '--with-mpi' -e '--device' || echo "No test was skipped."
[ -z "$no_emulator" ] || echo "$no_emulator"
echo "GPU: nothing ran on one here; scripts/gpu_check.sh is for machines that have one."

printf '\nAll checks passed.\n'
