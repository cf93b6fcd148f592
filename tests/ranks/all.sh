#!/usr/bin/env bash
# `make ranks`: all that is run on several ranks, in its long form, which takes too long for every change. What each part
# says goes to bench/results/ranks.txt too.
#   all.sh BUILD_FOLDER
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
source=$(dirname "$(dirname "$here")")
build=$(readlink -f "$1") status=0
results=$source/bench/results/ranks.txt
host=$(hostname)

# part TITLE COMMAND ...: its lines under the title, and how long it took
part() {
    local title=$1 begun=$SECONDS code
    shift
    {
        printf '# %s\n' "$title"
        "$@" 2>&1
        code=$?
        printf '# %s after %d s\n\n' "$([ $code = 0 ] && echo passed || echo FAILED)" $((SECONDS - begun))
        exit $code
    } | sed -u "s/ on $host\b/ on HOST/g" | tee -a "$results"
    [ "${PIPESTATUS[0]}" = 0 ] || status=1
}

{
    echo "# tests/ranks/all.sh on $(nproc) cores, $(mpirun --version | head -n 1)"
    echo
} | tee "$results"
part "fates of a rank of four in a loop of collectives: deadline 2 s; fates.sh" bash "$here/fates.sh" "$build" long
part "fates of a rank of four in a run: deadline 2 s; ends.sh" bash "$here/ends.sh" "$build" "$source" long
part "collectives on 1 to 8 ranks; collectives.sh" bash "$here/collectives.sh" "$build"
part "tokens that travel, of a small model on 1 to 8 ranks; spread.sh" bash "$here/spread.sh" "$build" long
part "weights that travel; peers.sh" bash "$here/peers.sh" "$build" "$source" long
part "memory and bytes beside the plan; memory.sh" bash "$here/memory.sh" "$build" "$source"
part "residencies of runs on 2 to 12 ranks; residency.sh" bash "$here/residency.sh" "$build" "$source" long
part "planted communication bugs, seen by the stand-in for NCCL; bugs.sh" bash "$here/bugs.sh" "$build"
part "run folders of 1 to 12 ranks; run.sh" bash "$here/run.sh" "$build" "$source" long
part "trainings of 1 to 12 ranks; tune.sh" bash "$here/tune.sh" "$build" "$source" long
part "golden cases on 1 to 8 ranks; conform.sh" bash "$here/conform.sh" "$build" "$source" long
part "under a Slurm of its own; slurm.sh" bash "$here/slurm.sh" "$build" "$source"
part "a golden case on emulated devices, NCCL's stand-in between them; conform.sh" bash "$here/conform.sh" "$build" "$source" emulated
part "trainings of one on emulated devices; conform.sh" bash "$here/conform.sh" "$build" "$source" training
part "runs on emulated devices; emulated.sh" bash "$here/emulated.sh" "$build" "$source" long
exit $status
