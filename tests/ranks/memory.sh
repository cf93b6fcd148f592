#!/usr/bin/env bash
# Memory and bytes of ranks beside the plan, on 1, 2 and 4 ranks, where tokens travel and where weights do.
#   memory.sh BUILD_FOLDER SOURCE_FOLDER
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/mpi.sh"
build=$1 source=$2 status=0
for words in 1,resident 2,resident 4,resident 3,resident 2,peers 4,peers; do
    got=$(timeout 100 mpirun -n "${words%,*}" "$build/rank_memory" "$source/tests/golden/olmoe" "${words#*,}" 2>&1) || status=1
    grep -E '^(ok|WRONG) ' <<<"$got" | sort || { echo "$words: $got"; status=1; }
done
exit $status
