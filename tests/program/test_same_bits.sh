#!/usr/bin/env bash
# The demo job's tables are the same bytes for one and two threads, for batches of 1, 7 and all prompts, and on every
# instruction set that this processor has.   test_same_bits.sh PROGRAM SOURCE_FOLDER
set -euo pipefail
program=$1 source=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export OMP_WAIT_POLICY=passive

# Hashes of all tables and arrays of a run.
tables() {
    (cd "$1" && find . -name '*.csv' -o -name '*.safetensors' -o -name step.json | sort | xargs sha256sum)
}
run() {
    rm -rf "$folder/run"
    "$program" run "$source/configs/jobs/demo.json" --out "$folder/run" "$@" >/dev/null 2>"$folder/log" ||
        { cat "$folder/log"; exit 1; }
    tables "$folder/run"
}

OMP_NUM_THREADS=2 run >"$folder/expected"
[ "$(wc -l <"$folder/expected")" -ge 15 ] || { echo "too few tables"; exit 1; }
compare() {
    cmp -s "$folder/expected" "$folder/actual" || { echo "$1: other bytes"; diff "$folder/expected" "$folder/actual"; exit 1; }
    echo "$1: same bytes"
}
OMP_NUM_THREADS=1 run >"$folder/actual" && compare "1 thread"
for n in 1 7 1000; do
    run --set batch_prompts=$n >"$folder/actual" && compare "batches of $n"
done
for isa in avx2 avx512 avx512bf16; do
    if GATETAPE_ISA=$isa "$program" run "$source/configs/jobs/demo.json" --dry-run >/dev/null 2>&1; then
        GATETAPE_ISA=$isa run >"$folder/actual" && compare "$isa"
    else
        echo "$isa: skipped, not on this processor"
    fi
done
# The comparison can fail: another score gives other tables.
run --set steps.activation.score=probability >"$folder/actual"
cmp -s "$folder/expected" "$folder/actual" && { echo "a changed score went unnoticed"; exit 1; }
exit 0
