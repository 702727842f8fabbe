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

# beside COMMAND...: runs it while others run; `joined` shows its output.
beside() {
    { "$@" > "$log/beside" 2>&1 || touch "$log/failed"; } &
}
joined() {
    wait
    tee -a "$log/output" < "$log/beside"
    [ ! -e "$log/failed" ]
}

tests="python -m pytest -q -p no:cacheprovider"
table="(definition and not double) or backward_agrees or static_dynamic"

# What only computes, and so may share the machine. Other tests measure time, or start ranks.
computing="-e /test_cpu_ -e /test_functions_ -e /test_solvers -e /test_rec -e /test_program -e /test_fusion"
computing="$computing -e /test_accuracy -e /test_convolution -e /test_memory_budget -e /test_random_functions"
computing="$computing -e /test_sequences -e /test_seed_network -e /test_sync_batch -e /test_function_errors"
files=$(ls tests/test_*.py tests/*/test_*.py | grep -v /test_functions.py)

step "function table, and beside it with compiled CPU kernels at all sizes"
beside $tests --device numba tests/test_functions.py -k "$table"
run $tests tests/test_functions.py || true
joined

step "all other tests on one process, those that only compute beside the others"
beside $tests $(echo "$files" | grep $computing)
run $tests $(echo "$files" | grep -v $computing) || true
joined

step "all CUDA sources, by NVIDIA's compiler, for sm_80 and sm_90"
run $tests --device emulated tests/test_cuda_sources.py

if command -v g++ > /dev/null; then
    step "GPU backend on the emulator: its own tests, and beside them the function table"
    plans="tests/test_program.py tests/test_fusion.py tests/test_record.py tests/test_recompute.py"
    plans="$plans tests/test_memory_budget.py tests/test_arena.py tests/test_interchange.py"
    rest="tests/test_cuda_precision.py tests/test_cuda_reduction.py tests/test_cuda_indexing.py"
    rest="$rest tests/test_cuda_pooling.py tests/test_gpu_emulator.py"
    emulated() {
        $tests --device emulated tests/test_functions.py -k "$table" && $tests --device emulated $rest
    }
    own=$(ls tests/test_cuda_*.py $plans | grep -v -e test_cuda_sources $(printf -- '-e %s ' $rest))
    beside emulated
    run $tests --device emulated $own || true
    joined
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
