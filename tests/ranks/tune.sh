#!/usr/bin/env bash
# Trainings on ranks: every objective, held-out groups, patience, a last step of one example and one of fewer examples
# than ranks have the same run folder on 1, 2, 3, 4 and 8 ranks; a training whose rank was killed, or that was asked to
# end, is gone on with by another number of ranks, with the same bytes; one that diverges ends alike on all.
#   tune.sh BUILD_FOLDER SOURCE_FOLDER short|long
. "$(dirname "$(readlink -f "$0")")/trial.sh"
cp -r "$source/configs" .
same() { diff -rq -x manifest.json -x events.jsonl "$1" "$2"; }

cat >configs/jobs/tune.json <<'JOB'
{
  "schema_version": 1,
  "models": {"demo": {"path": "../demo/model", "chat_template": "phi35moe"}},
  "prompts": {
    "tuning": {"path": "../demo/prompts/rank_restricted.jsonl", "limit": 13, "use": "tuning"},
    "held_out": {"path": "../demo/prompts/rank_ordinary.jsonl", "limit": 5, "use": "any"}
  },
  "steps": [
    {"name": "tune", "kind": "tune", "model": "demo", "groups": ["tuning"], "cells": ["0:2", "2:1", "3:4"], "rank": 4,
     "learning_rate": 0.001, "examples": 5, "epochs": 2, "evaluate": ["held_out"], "evaluate_every": 2},
    {"name": "patient", "kind": "tune", "model": "demo", "groups": ["tuning"], "cells": ["1:3"], "rank": 2, "gate_rows": true,
     "learning_rate": 0.05, "schedule": "constant", "examples": 3, "epochs": 3, "evaluate": ["held_out"],
     "evaluate_every": 1, "patience": 2, "clip_norm": 1, "weight_decay": 0.01},
    {"name": "few", "kind": "tune", "model": "demo", "groups": ["tuning"], "cells": ["2:1"], "rank": 2, "examples": 2,
     "steps": 2, "learning_rate": 0.001}
  ]
}
JOB
# Objectives one by one; here the steps are shortened, so that the last has fewer examples than ranks.
short=(--set prompts.pairs.limit=11 --set prompts.held_out.limit=3 --set prompts.ordinary.limit=3
    --set steps.preference.epochs=2 --set steps.preference.evaluate_every=2)
[ "$how" = long ] && short=()
declare -A sets=([tune]="" [objectives-demo]="${short[*]}")

# ---- any number of ranks ----
counts=(3 8)
spread_counts=(3) spread=(--set residency=peers)
[ "$how" = long ] && counts=(1 2 3 4 5 8 12) spread_counts=(2 3 4 8)
for job in tune objectives-demo; do
    read -ra own <<<"${sets[$job]}"
    timeout 120 "$program" run configs/jobs/$job.json --out "$job" "${own[@]}" 2>log || { cat log; exit 1; }
    for n in "${counts[@]}"; do
        timeout 120 mpirun -n "$n" "$program" run configs/jobs/$job.json --out ranks "${own[@]}" 2>log ||
            { fail "$job, $n ranks"; cat log; }
        if same "$job" ranks; then echo "$job, $n ranks: same bytes"; else fail "$job, $n ranks: other bytes"; fi
        rm -rf ranks
    done
    # the experts spread over the ranks, which then fetch each other's weights in every pass
    for n in "${spread_counts[@]}"; do
        timeout 120 mpirun -n "$n" "$program" run configs/jobs/$job.json --out ranks "${own[@]}" "${spread[@]}" 2>log ||
            { fail "$job, spread over $n ranks"; cat log; }
        diff -rq -x manifest.json -x events.jsonl -x job.json "$job" ranks || fail "$job, spread over $n ranks: other bytes"
        grep -q 'model demo: peers, experts over' log || fail "$job, $n ranks: not spread: $(cat log)"
        echo "$job, spread over $n ranks: same bytes"
        rm -rf ranks
    done
done
# 13 steps are planned: a header, the row before the first, and fewer
[ "$(wc -l <tune/patient/training.csv)" -lt 15 ] || fail "patience did not end the training: nothing was decided"

# ---- ended in the middle, gone on with by another number of ranks ----
slow=(--set batch_prompts=1 --set steps.tune.epochs=25 --set steps.tune.checkpoint_every=1)
timeout 120 "$program" run configs/jobs/tune.json --out long "${slow[@]}" 2>log || { cat log; exit 1; }
# what, ranks at first, ranks then, and what happens in between
interrupted() {
    local name=$1 first=$2 then=$3 meet=$4 code
    timeout -s KILL 100 mpirun -n "$first" "$program" run configs/jobs/tune.json --out ranks --deadline 3 "${slow[@]}" 2>log &
    pid=$!
    for _ in $(seq 2000); do
        [ -e ranks/tune/checkpoint.safetensors ] && break
        sleep 0.01
    done
    mapfile -t ranks < <(pgrep -f "^$program run configs/jobs/tune.json --out ranks" | sort -n)
    $meet
    wait $pid 2>/dev/null
    code=$?
    [ $code != 0 ] || fail "$name: expected a code that is not 0"
    echo "$name: code $code: $(grep -m1 'gatetape: error:' log | cut -c1-160)"
    [ -e ranks/tune/checkpoint.safetensors ] || fail "$name: came outside the training"
    timeout 120 mpirun -n "$then" "$program" run configs/jobs/tune.json --out ranks "${slow[@]}" 2>log ||
        { fail "$name: not resumed"; cat log; }
    grep -o 'tune: goes on after step [0-9]*' log || fail "$name: began anew"
    same long ranks || fail "$name: other bytes"
    rm -rf ranks
}
killed() { kill -KILL "${ranks[2]}"; }
writer_killed() { kill -KILL "${ranks[0]}"; }
asked() { kill -USR1 "$(pgrep -P $pid)"; }
one_asked() { kill -TERM "${ranks[1]}"; }
interrupted "killed rank of 4, gone on with by 3" 4 3 killed
interrupted "TERM to one rank of 3, gone on with by 8" 3 8 one_asked
[ "$how" = long ] && interrupted "killed rank 0 of 2, gone on with by 1" 2 1 writer_killed
[ "$how" = long ] && interrupted "USR1 to mpirun of 8, gone on with by 2" 8 2 asked

# ---- a training that diverges: one line, the same, and the same state ----
wild=(--set steps.tune.learning_rate=1e6 --set steps.tune.schedule=constant --set steps.tune.evaluate_every=1000)
timeout 60 "$program" run configs/jobs/tune.json --out wild "${wild[@]}" 2>wild.log
diverged() { # how [arguments]
    local name=$1 line
    timeout 60 mpirun -n 3 "$program" run configs/jobs/tune.json --out ranks "${wild[@]}" "${@:2}" 2>log
    [ $? = 1 ] || fail "a loss that is not finite, $name: expected exit code 1"
    line=$(grep 'gatetape: error:' log)
    grep -qE 'training step [0-9]+, not taken .*group tuning, example .*expected a finite number' <<<"$line" ||
        fail "a loss that is not finite, $name: $line"
    [ "$line" = "$(grep 'gatetape: error:' wild.log)" ] || fail "a loss that is not finite, $name: other words: $line"
    diff -rq -x manifest.json -x events.jsonl -x job.json wild ranks || fail "a loss that is not finite, $name: another state"
    echo "diverged, $name: $(cut -c1-160 <<<"$line")"
    rm -rf ranks
}
diverged "whole models"
diverged "spread experts" "${spread[@]}"
exit $status
