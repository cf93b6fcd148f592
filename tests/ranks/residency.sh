#!/usr/bin/env bash
# Runs whose experts are spread over ranks, resident or sent by the peers: the same run folder as on one rank that has them
# all, whichever steps follow each other, and said in a line; what cannot be is refused.
#   residency.sh BUILD_FOLDER SOURCE_FOLDER short|long
. "$(dirname "$(readlink -f "$0")")/trial.sh"
cp -r "$source/configs" .

# A training between two steps of the same model: where tokens travel, the weights are loaded again for it.
cat >configs/jobs/residency.json <<'JOB'
{
  "schema_version": 1,
  "models": {"demo": {"path": "../demo/model", "chat_template": "phi35moe"}},
  "prompts": {
    "ordinary": {"path": "../demo/prompts/rank_ordinary.jsonl", "limit": 9},
    "restricted": {"path": "../demo/prompts/rank_restricted.jsonl", "limit": 10},
    "tuning": {"path": "../demo/prompts/test_ordinary.jsonl", "limit": 7, "use": "tuning"},
    "test": {"path": "../demo/prompts/test_restricted.jsonl", "limit": 5}
  },
  "steps": [
    {"name": "activation", "kind": "activation", "model": "demo", "groups": ["ordinary", "restricted"], "trace": "full"},
    {"name": "reply", "kind": "activation", "tokens": "generated", "max_new_tokens": 6, "model": "demo",
     "groups": ["ordinary", "restricted"]},
    {"name": "tune", "kind": "tune", "model": "demo", "groups": ["tuning"], "cells": ["2:1", "3:4"], "rank": 2,
     "learning_rate": 0.001, "examples": 4, "epochs": 1},
    {"name": "gradient", "kind": "gradient", "loss": "target", "model": "demo", "groups": ["ordinary", "restricted"],
     "gate_rows": true, "adapter": "tune"},
    {"name": "silenced", "kind": "intervention", "model": "demo", "groups": ["test"], "max_new_tokens": 4,
     "from": ["activation"], "rank_groups": ["restricted", "ordinary"], "top": [2]}
  ]
}
JOB
timeout 120 "$program" run configs/jobs/residency.json --out whole 2>log || { cat log; exit 1; }
# job.json repeats the residency that was asked for
same() { diff -rq -x manifest.json -x events.jsonl -x job.json whole "$1"; }

# ranks, the residency, and what is said of it: of 8 experts; 12 ranks are two groups
runs=(2,resident,"resident, experts over 2 of 2 ranks, 4 of 8" 3,peers,"peers, experts over 3 of 3 ranks, 3 of 8")
[ "$how" = long ] && runs+=(3,resident,"resident, experts over 3 of 3" 4,resident,"resident, experts over 4 of 4"
    2,peers,"peers, experts over 2 of 2" 4,peers,"peers, experts over 4 of 4" 8,peers,"peers, experts over 8 of 8 ranks, 1 of 8"
    8,resident,"resident, experts over 8 of 8" 12,resident,"resident, experts over 6 of 12 ranks, 2 of 8"
    12,peers,"peers, experts over 6 of 12 ranks")
runs+=(2,auto,"the whole model on each of 2 ranks")
for run in "${runs[@]}"; do
    n=${run%%,*} rest=${run#*,} residency=${rest%%,*} says=${rest#*,}
    timeout 200 mpirun -n "$n" "$program" run configs/jobs/residency.json --out ranks --set residency="$residency" 2>log ||
        { fail "$residency, $n ranks"; cat log; }
    if same ranks; then echo "$residency, $n ranks: same bytes"; else fail "$residency, $n ranks: other bytes"; fi
    grep -q "model demo: $says" log || { fail "$residency, $n ranks: expected to be told '$says'"; cat log; }
    # of a model whose tokens travel, once for the training and once after it
    loads=$(grep -c 'model demo: .* MiB in' log) want=1
    [ "$residency" = resident ] && want=3
    [ "$loads" = $want ] || { fail "$residency, $n ranks: expected $want loadings: got $loads"; cat log; }
    timeout 60 "$program" run configs/jobs/residency.json --dry-run --ranks "$n" --set residency="$residency" >plan || fail "no plan of $run"
    said=${says#*over } taken=$residency
    [ "$residency" = auto ] && said=1 taken=resident
    grep -A4 '^step activation' plan | grep -q "experts over ${said%% *}, $taken" || { fail "$run: the plan says otherwise"; cat plan; }
    rm -rf ranks
done

# ---- what cannot be ----
refused() { # text, then the run
    local says=$1 code
    shift
    timeout 60 "$@" run configs/jobs/residency.json --out ranks "${set[@]}" >log 2>&1
    code=$?
    [ $code = 3 ] && grep -q "$says" log || { fail "expected '$says', code 3: got $code"; cat log; }
    rm -rf ranks
}
set=(--set residency=peers)
refused 'for a run of one rank: got peers' "$program"
set=(--set residency=streamed --set device=cpu)
refused 'residency: expected a device with memory of its own for streamed weights' mpirun -n 2 "$program"
exit $status
