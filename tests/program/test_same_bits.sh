#!/usr/bin/env bash
# The demo job's tables are the same bytes for 1 and 2 threads, for batches of 1, 7 and all prompts, with activations
# kept or recomputed, and on every instruction set that this processor has.
#   test_same_bits.sh PROGRAM SOURCE_FOLDER
set -uo pipefail
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # threads that spin where cores are shared take minutes
program=$1 source=$2 status=0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp -r "$source/configs" "$folder/"
sed -e '/"kind": "report"/d' -e 's/\(gradient_reply.*\]}\),$/\1/' "$source/configs/jobs/demo.json" >"$folder/configs/jobs/demo.json"
cd "$folder" || exit 1
"$program" run configs/jobs/demo.json --out whole 2>log || { cat log; exit 1; }

compare() {
    local what=$1
    shift
    env "${environment[@]}" "$program" run configs/jobs/demo.json --out other "$@" 2>log
    local code=$?
    if [ $code = 3 ] && [ "${what#isa}" != "$what" ]; then
        echo "$what: skipped, this processor lacks it"
    elif [ $code != 0 ]; then
        echo "$what: exit $code: $(cat log)"
        status=1
    elif diff -rq -x manifest.json -x events.jsonl -x job.json whole other; then
        echo "$what: same bytes"
    else
        status=1
    fi
    rm -rf other
}
environment=(OMP_NUM_THREADS=1)
compare "1 thread"
environment=(OMP_NUM_THREADS=2)
compare "2 threads"
environment=(OMP_NUM_THREADS=3)
compare "3 threads, batches of 7" --set batch_prompts=7
environment=(A=1)
compare "batches of 1" --set batch_prompts=1
compare "batches of 7" --set batch_prompts=7
compare "all prompts" --set batch_tokens=1000000
compare "100 tokens" --set batch_tokens=100
compare "recomputed" --set steps.gradient.recompute=always --set steps.gradient_reply.recompute=always
for isa in avx2 avx512; do
    environment=("GATETAPE_ISA=$isa")
    compare "isa $isa" --set batch_prompts=7
done
# Without vector instructions each multiply-add is a call: fewer prompts there.
few=(--set prompts.ordinary.limit=8 --set prompts.restricted.limit=8)
rm -rf whole
"$program" run configs/jobs/demo.json --out whole "${few[@]}" 2>log || { cat log; exit 1; }
environment=(GATETAPE_ISA=generic)
compare "isa generic, 8 prompts a group" "${few[@]}" --set batch_prompts=3

# A switch that must change numbers does: the comparison can fail.
"$program" run configs/jobs/demo.json --out other "${few[@]}" --set steps.gradient.score=l1 2>log
diff -rq whole/gradient/scores.csv other/gradient/scores.csv >/dev/null && { echo "score l1: expected other bytes"; status=1; }
exit $status
