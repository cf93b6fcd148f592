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
expect() { # what to try, the code, the one line
    local got code
    got=$(timeout 60 mpirun -n 3 "$build/rank_spread" "$1" 2>&1)
    code=$?
    if [ $code = "$2" ] && [ "$(grep -c '^gatetape: error: ' <<<"$got")" = 1 ] && grep -q "^gatetape: error: $3" <<<"$got"; then
        echo "$1: $(grep '^gatetape: error: ' <<<"$got")"
    else
        echo "$1: expected code $2 and \"$3\": got $code: $got"
        status=1
    fi
}
expect hook 2 'rank 1: .*a hook of a test'
expect memory 3 "rank 1: .*rows of other ranks' tokens: expected [0-9]* bytes on device .*: got none"
exit $status
