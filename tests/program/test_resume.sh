#!/usr/bin/env bash
# A run killed by SIGKILL at ten moments and resumed gives the bytes of an undisturbed one; a changed job is refused in
# the same folder.   test_resume.sh PROGRAM SOURCE_FOLDER
set -euo pipefail
program=$1 source=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1
job="$source/configs/jobs/demo.json"
settings=(--set batch_prompts=4)

tables() {
    (cd "$1" && find . -type f ! -name manifest.json ! -name events.jsonl ! -name '*.pdf' | sort | xargs sha256sum)
}
begin=$(date +%s%N)
"$program" run "$job" --out "$folder/whole" "${settings[@]}" >/dev/null 2>&1
took=$((($(date +%s%N) - begin) / 1000000))
tables "$folder/whole" >"$folder/expected"

killed=0
for i in 1 2 3 4 5 6 7 8 9 10; do
    "$program" run "$job" --out "$folder/run" "${settings[@]}" >/dev/null 2>&1 &
    pid=$!
    # moments all over the run, not in step with it
    ms=$((took * (i * 37 % 100) / 300 + 5))
    sleep "$(printf '%d.%03d' $((ms / 1000)) $((ms % 1000)))"
    kill -9 $pid 2>/dev/null && killed=$((killed + 1))
    wait $pid 2>/dev/null || true
done
[ "$killed" -ge 3 ] || { echo "only $killed of 10 kills met a running job ($took ms)"; exit 1; }
"$program" run "$job" --out "$folder/run" "${settings[@]}" >/dev/null 2>"$folder/log" || { cat "$folder/log"; exit 1; }
tables "$folder/run" >"$folder/actual"
diff "$folder/expected" "$folder/actual" || { echo "a resumed run has other bytes"; exit 1; }
echo "killed $killed times, resumed: same bytes"

status=0
"$program" run "$job" --out "$folder/run" --set batch_prompts=5 --set seed=7 >/dev/null 2>"$folder/log" || status=$?
[ $status -eq 2 ] || { echo "a changed job: exit $status, expected 2"; cat "$folder/log"; exit 1; }
