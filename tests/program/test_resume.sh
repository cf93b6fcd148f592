#!/usr/bin/env bash
# Kills a run of the demo job at ten random moments, resumes it, and compares every file with an undisturbed run; then
# the same with SIGTERM, which ends with code 130.
#   test_resume.sh PROGRAM SOURCE_FOLDER
set -uo pipefail
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # threads that spin where cores are shared take minutes
program=$1 source=$2 status=0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp -r "$source/configs" "$folder/"
# The report is a function of the tables and has tests of its own.
sed -e '/"kind": "report"/d' -e 's/\(gradient_reply.*\]}\),$/\1/' "$source/configs/jobs/demo.json" >"$folder/configs/jobs/demo.json"
cd "$folder" || exit 1
run() { "$program" run configs/jobs/demo.json --out "$1" 2>"$1.log"; }
same() { diff -rq -x manifest.json -x events.jsonl whole "$1"; }
fail() {
    echo "$1"
    status=1
}

begun=$(date +%s%N)
run whole || { cat whole.log; exit 1; }
duration=$((($(date +%s%N) - begun) / 1000000 + 1))
seed=$((RANDOM * 32768 + RANDOM))
RANDOM=$seed
echo "undisturbed: $duration ms; seed $seed"

n_killed=0
for _ in 1 2 3 4 5 6 7 8 9 10; do
    moment=$(((RANDOM * 32768 + RANDOM) % duration))
    "$program" run configs/jobs/demo.json --out killed 2>killed.log &
    pid=$!
    sleep "$((moment / 1000)).$(printf %03d $((moment % 1000)))"
    kill -9 $pid 2>/dev/null
    wait $pid 2>/dev/null
    code=$?
    [ $code = 137 ] && n_killed=$((n_killed + 1))
    left=$(find killed -type f 2>/dev/null | wc -l)
    run killed || fail "killed after $moment ms: resuming failed: $(cat killed.log)"
    same killed || fail "killed after $moment ms: the resumed run differs"
    [ -z "$(find killed -name '*.partial-*' -o -name blocks)" ] || fail "killed after $moment ms: left-overs"
    echo "killed after $moment ms (exit $code) with $left files: resumed, same bytes"
    rm -rf killed
done
[ $n_killed -gt 0 ] || fail "no run was killed in time"

n_stopped=0
for share in 10 20 30 40 50 60; do
    moment=$((duration * share / 100))
    "$program" run configs/jobs/demo.json --out stopped 2>stopped.log &
    pid=$!
    sleep "$((moment / 1000)).$(printf %03d $((moment % 1000)))"
    kill -TERM $pid 2>/dev/null
    wait $pid 2>/dev/null
    code=$?
    # 143: before the run had begun to listen
    case $code in
    130)
        n_stopped=$((n_stopped + 1))
        grep -q 'error: .*interrupted' stopped.log || fail "SIGTERM: expected a line that says so: $(cat stopped.log)"
        grep -q '"state": "interrupted"' stopped/manifest.json || fail "SIGTERM: the manifest does not say so"
        ;;
    0 | 143) ;;
    *) fail "SIGTERM after $moment ms: expected exit code 130: got $code: $(cat stopped.log)" ;;
    esac
    run stopped || fail "SIGTERM after $moment ms: resuming failed: $(cat stopped.log)"
    same stopped || fail "SIGTERM after $moment ms: the resumed run differs"
    rm -rf stopped
done
[ $n_stopped -gt 0 ] || fail "no run was stopped by SIGTERM in time"
echo "SIGTERM: $n_stopped of 6 stopped with code 130, all resumed"
exit $status
