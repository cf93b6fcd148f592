#!/usr/bin/env bash
# A model spread over ranks gives the bits of one rank, more ranks than experts included.
#   spread.sh BUILD_FOLDER [long]
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/mpi.sh"
build=$1 status=0
counts="1 2 3 8"
[ "${2:-short}" = long ] && counts="1 2 3 4 5 8 12"
for n in $counts; do
    if got=$(timeout 200 mpirun -n "$n" "$build/rank_spread" 2>&1); then
        echo "$got"
    else
        echo "$n ranks: $got"
        status=1
    fi
done
exit $status
