#!/usr/bin/env bash
# `make ranks`: what takes too long for every change. The table of fates goes to bench/results/ranks.txt.
#   all.sh BUILD_FOLDER
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
source=$(dirname "$(dirname "$here")")
build=$(readlink -f "$1") status=0
table=$source/bench/results/ranks.txt
{
    echo "# fates of a rank of four: deadline 2 s, started by mpirun; tests/ranks/fates.sh"
    bash "$here/fates.sh" "$build" long || status=1
} > >(tee "$table")
bash "$here/collectives.sh" "$build" || status=1
bash "$here/bugs.sh" "$build" || status=1
bash "$here/run.sh" "$build" "$source" long || status=1
bash "$here/tune.sh" "$build" "$source" long || status=1
bash "$here/slurm.sh" "$build" "$source" | tee -a "$table"
[ "${PIPESTATUS[0]}" = 0 ] || status=1
exit $status
