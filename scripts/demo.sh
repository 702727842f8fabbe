#!/bin/sh
# The main job on a fresh machine (Python 3.11 and pip are enough): train on real digits, data-parallel
# on 2 MPI ranks.
set -eu
cd "$(dirname "$0")/.."
extras=mpi,examples
. scripts/environment.sh
exec distnn-launch -n 2 examples/digits_data_parallel.py "$@"
