#!/bin/sh
# All checks on a fresh machine (Python 3.11 and pip are enough): lint, types, tests on one process,
# then the MPI tests on 2 and 4 ranks. Ends with what was skipped and why.
set -eu
cd "$(dirname "$0")/.."
extras=mpi,io,examples,test
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

for ranks in 2 4; do
    step "MPI tests on $ranks ranks"
    run distnn-launch -n "$ranks" --timeout 600 --tee 0 \
        -m pytest -q -p no:cacheprovider --with-mpi -m mpi tests
done

step "skipped"
# What needs --with-mpi in the first run was run by the MPI tests.
grep -ah 'SKIPPED' "$log/output" | grep -av -e '--with-mpi' || echo "No test was skipped."
echo "GPU: this version has no GPU kernels; nothing of it has run on a GPU."

printf '\nAll checks passed.\n'
