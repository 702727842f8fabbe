#!/bin/sh
# All checks on a fresh machine (Python 3.11 and pip are enough): lint, types, tests on one process,
# then the MPI tests on 2 and 4 ranks. Ends with what was skipped and why.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh mpi,io,examples,test
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT

step() {
    echo
    echo "== $1"
}

step "lint"
ruff check --quiet .
ruff format --check --quiet .

step "types"
mypy

step "tests on one process"
python -m pytest -q -p no:cacheprovider tests | tee "$log/single"
grep -q ' passed' "$log/single"

for ranks in 2 4; do
    step "MPI tests on $ranks ranks"
    distnn-launch -n "$ranks" --timeout 300 --tee 0 --log-dir "$log/mpi-$ranks" \
        -m pytest -q -p no:cacheprovider --with-mpi -m mpi tests
done

step "skipped"
grep -h '^SKIPPED' "$log/single" | sort | uniq -c | sort -rn || true
echo "GPU: this version has no GPU kernels; nothing of it has run on a GPU."
echo
echo "All checks passed."
