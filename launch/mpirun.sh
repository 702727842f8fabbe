#!/usr/bin/env bash
# Start a program by Open MPI's mpirun alone, without distnn-launch. How to use it:
#
#   bash launch/mpirun.sh one-node   4 train.py --batch-size 64    4 ranks on this machine
#   bash launch/mpirun.sh nodes     16 train.py --batch-size 64    on the hosts of launch/hostfile
#   bash launch/mpirun.sh container  4 train.py --batch-size 64    as root, cores or not
#
# or copy the line you need. `distnn.launcher.rank` gives each rank its cores and its GPU, and turns
# an uncaught exception in one rank into the end of all (plain mpirun leaves the others waiting).
# HOSTFILE, PYTHON and MPIRUN_ARGS (more options for mpirun) may be set in the environment.
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,6p' "$0" >&2
    exit 2
fi
where=$1 ranks=$2
shift 2
python=${PYTHON:-python}
hostfile=${HOSTFILE:-$(dirname "$0")/hostfile}
read -r -a more <<<"${MPIRUN_ARGS:-}"
rank=("$python" -m distnn.launcher.rank --bind auto "$@")

case $where in
one-node)
    # --bind-to none: Open MPI would put each rank on one core, and its BLAS threads with it.
    mpirun -n "$ranks" --map-by slot --bind-to none ${more[@]+"${more[@]}"} "${rank[@]}"
    ;;
nodes)
    # Program and Python must have the same path on all hosts; ssh must work without a password.
    mpirun -n "$ranks" --hostfile "$hostfile" --map-by slot --bind-to none \
        -x PATH ${more[@]+"${more[@]}"} "${rank[@]}"
    ;;
container)
    # OVERSUBSCRIBE allows more ranks than cores. If Docker lacks --cap-add SYS_PTRACE and ranks
    # print `Read -1, expected ..., errno = 1`: MPIRUN_ARGS="--mca smsc ^cma"
    mpirun --allow-run-as-root -n "$ranks" --map-by slot:OVERSUBSCRIBE --bind-to none \
        ${more[@]+"${more[@]}"} "${rank[@]}"
    ;;
*)
    echo "$0: '$where' is none of one-node, nodes, container" >&2
    exit 2
    ;;
esac
