#!/usr/bin/env bash
# Every planted communication bug must be seen by the stand-in for NCCL, and nothing else. `short`: a few.
#   bugs.sh BUILD_FOLDER [short]
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/mpi.sh"
build=$1 status=0 n=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
bugs=$("$build/nccl_bugs")
[ "${2:-long}" = long ] || bugs="write_too_early send_count no_group"
for bug in $bugs; do
    timeout -s KILL 60 mpirun -n 4 "$build/nccl_bugs" "$bug" >"$log" 2>&1
    code=$?
    case $bug in
    peer_dead | peer_dead_silent | peer_stopped) # the launcher's code tells of the lost rank; what the others said is in the log
        seen=$(grep -c '^ok' "$log")
        { [ "$seen" -ge 1 ] && ! grep -q WRONG "$log"; } || code=1 ;;
    *) seen=$(grep -c '^ok' "$log"); [ $code = 0 ] || seen=0 ;;
    esac
    n=$((n + 1))
    if [ "$seen" -ge 1 ]; then
        echo "ok $bug: $(grep -m1 -E '^  rank|^ok rank' "$log" | cut -c1-170)"
    else
        echo "WRONG $bug: code $code"
        cat "$log"
        status=1
    fi
done
if compgen -G '/dev/shm/nccl_standin_*' >/dev/null; then echo "WRONG: shared memory left behind"; status=1; fi
[ "$n" -gt 0 ] || { echo "WRONG: no bug was planted"; status=1; }
echo "$n bugs"
exit $status
