#!/usr/bin/env bash
# The program on ranks: a run folder has the same bytes for any number of ranks, more than there are prompts too, of every
# kind of step: traces, gate rows and generated replies, contrasts, interventions with edits, forks and adapters, a guard,
# choices and perplexity; a run whose rank was killed or stopped, or that was asked to end, is gone on with by another
# number of ranks, with the same bytes; ranks that differ are refused. `long`: more numbers of ranks, and shipped jobs.
#   run.sh BUILD_FOLDER SOURCE_FOLDER short|long
. "$(dirname "$(readlink -f "$0")")/trial.sh"
cp -r "$source/configs" .
same() { diff -rq -x manifest.json -x events.jsonl whole "$1"; }

cat >configs/jobs/ranks.json <<'JOB'
{
  "schema_version": 1,
  "seed": 3,
  "models": {"demo": {"path": "../demo/model", "chat_template": "phi35moe"}},
  "prompts": {
    "ordinary": {"path": "../demo/prompts/rank_ordinary.jsonl", "limit": 70},
    "restricted": {"path": "../demo/prompts/rank_restricted.jsonl", "limit": 40},
    "pairs": {"path": "../demo/prompts/contrast_restricted.jsonl", "limit": 12},
    "partners": {"path": "../demo/prompts/contrast_ordinary.jsonl", "limit": 12},
    "test": {"path": "../demo/prompts/test_restricted.jsonl", "limit": 6},
    "choices": {"path": "../demo/prompts/choices.jsonl", "limit": 9}
  },
  "steps": [
    {"name": "activation", "kind": "activation", "groups": ["ordinary", "restricted"], "trace": "full"},
    {"name": "reply", "kind": "activation", "tokens": "generated", "max_new_tokens": 8, "groups": ["ordinary", "restricted"],
     "trace": "full"},
    {"name": "gradient", "kind": "gradient", "loss": "target", "groups": ["ordinary", "restricted"], "gate_rows": true},
    {"name": "behaviour", "kind": "contrast", "groups": ["pairs"], "select": 2},
    {"name": "matched", "kind": "contrast", "contrast": "matched", "groups": ["pairs", "partners"], "select": 2},
    {"name": "prefix", "kind": "contrast", "contrast": "prefix", "groups": ["partners"], "prefix": "No. ", "tokens": "shared",
     "select": 2},
    {"name": "tuned", "kind": "tune", "groups": ["restricted"], "cells": ["2:1", "3:4"], "rank": 4, "learning_rate": 0.01,
     "steps": 2, "examples": 4},
    {"name": "silenced", "kind": "intervention", "groups": ["test", "partners", "pairs"], "max_new_tokens": 4, "random_sets": 2,
     "from": ["activation"], "rank_groups": ["restricted", "ordinary"], "top": [2]},
    {"name": "generated", "kind": "intervention", "groups": ["test"], "max_new_tokens": 4, "random_sets": 2,
     "from": ["activation"], "rank_groups": ["restricted", "ordinary"], "top": [2], "applies_to": "generated"},
    {"name": "tested", "kind": "intervention", "groups": ["test", "partners"], "max_new_tokens": 8, "adapters": ["tuned"],
     "temperature": 0.8},
    {"name": "judged", "kind": "judge", "from": ["tested"], "model": "demo"},
    {"name": "drift", "kind": "contrast", "contrast": "adapter", "adapter": "tuned", "groups": ["test"], "select": 2},
    {"name": "questions", "kind": "utility", "groups": ["choices"], "adapters": ["tuned"]},
    {"name": "perplexity", "kind": "utility", "measure": "perplexity", "groups": ["partners"], "adapters": ["tuned"]}
  ]
}
JOB
timeout 120 "$program" run configs/jobs/ranks.json --out whole 2>log || { cat log; exit 1; }
counts=(3 8)
[ "$how" = long ] && counts=(1 2 3 4 5 6 7 8 12)
for n in "${counts[@]}"; do
    timeout 120 mpirun -n $n "$program" run configs/jobs/ranks.json --out ranks 2>log || { fail "$n ranks"; cat log; }
    if same ranks; then echo "$n ranks: same bytes"; else fail "$n ranks: other bytes"; fi
    grep -q "\"ranks\": $n," ranks/manifest.json || fail "$n ranks: the manifest does not say so"
    rm -rf ranks
done

# ---- experts spread over the ranks: tokens travel to them (resident), or they to the tokens (peers) ----
spread() { # ranks, residency
    timeout 200 mpirun -n "$1" "$program" run configs/jobs/ranks.json --out ranks --set residency="$2" 2>log || { fail "$2 over $1 ranks"; cat log; }
    grep -q "model demo: $2, experts over $1 of $1 ranks" log || { fail "$2 over $1 ranks: the model is not spread"; cat log; }
    if diff -rq -x manifest.json -x events.jsonl -x job.json whole ranks; then echo "$2 over $1 ranks: same bytes"; else fail "$2 over $1 ranks: other bytes"; fi
    rm -rf ranks
}
spread 3 resident
spread 2 peers
if [ "$how" = long ]; then
    for n in 2 4 8; do spread $n resident; done
    for n in 3 8; do spread $n peers; done
fi

# ---- shipped jobs, of raset-demo.json a training of two steps and what compares it with the model as it is ----
shipped() { # a job
    local name n settings but
    name=$(basename "$1" .json)
    timeout 600 "$program" run "$1" --out "$name-1" 2>log || { fail "$name"; cat log; }
    for n in 2 3; do
        settings=() but=(-x '*.pdf') # gnuplot writes the time into a PDF; its SVG has the same curves
        # the files that name the options
        [ $n = 3 ] && settings=(--set residency=resident) but+=(-x job.json -x methods.txt -x report.html)
        timeout 600 mpirun -n $n "$program" run "$1" --out "$name-$n" "${settings[@]}" 2>log || { fail "$name, $n ranks"; cat log; }
        if diff -rq -x manifest.json -x events.jsonl "${but[@]}" "$name-1" "$name-$n"; then
            echo "$name, $n ranks ${settings[*]}: same bytes"
        else
            fail "$name, $n ranks ${settings[*]}: other bytes"
        fi
    done
}
if [ "$how" = long ]; then
    python3 - configs/jobs/raset-demo.json configs/jobs/raset-few.json <<'FEW'
import json, sys
job = json.load(open(sys.argv[1]))
for step in job["steps"]:
    if step["kind"] == "tune":
        step.update(steps=2, warmup=1)
json.dump(job, open(sys.argv[2], "w"))
FEW
    shipped configs/jobs/demo.json
    shipped configs/jobs/contrast-demo.json
    shipped configs/jobs/raset-few.json
fi

# ---- ended in the middle, gone on with by another number of ranks ----
slow=(--set batch_prompts=1)
# name, ranks at first, ranks then, what happens in between, once which step has begun, and settings of the first run
interrupted() {
    local name=$1 first=$2 then=$3 meet=$4 step=$5 code line left begun took n_blocks
    shift 5
    begun=$(date +%s.%N)
    timeout -s KILL 100 mpirun -n "$first" "$program" run configs/jobs/ranks.json --out ranks --deadline 3 "${slow[@]}" "$@" 2>log &
    pid=$!
    for _ in $(seq 2000); do
        n_blocks=$(find ranks -path '*blocks*' -name '*.safetensors' 2>/dev/null | wc -l)
        [ -d "ranks/$step" ] && [ "$n_blocks" -gt 0 ] && break
        sleep 0.02
    done
    mapfile -t ranks < <(pgrep -f "^$program run configs/jobs/ranks.json --out ranks" | sort -n)
    $meet
    wait $pid 2>/dev/null
    code=$?
    took=$(seconds_since "$begun")
    line=$(grep -m1 'gatetape: error:' log | cut -c1-200)
    sleep 0.2
    left=$(pgrep -fc "^$program run configs/jobs/ranks.json --out ranks")
    [ $code != 0 ] || fail "$name: expected a code that is not 0"
    [ -n "$line" ] || { fail "$name: expected a line"; cat log; }
    [ "$left" = 0 ] || fail "$name: $left processes left"
    [ -f ranks/perplexity/step.json ] && fail "$name: came too late"
    printf '%s: code %s after %s s: %s\n' "$name" $code "$took" "$line"
    timeout 120 mpirun -n "$then" "$program" run configs/jobs/ranks.json --out ranks "${slow[@]}" 2>log || { fail "$name: not resumed"; cat log; }
    diff -rq -x manifest.json -x events.jsonl -x job.json whole ranks || fail "$name: other bytes"
    rm -rf ranks
}
killed() { kill -KILL "${ranks[2]}"; }
stopped() { kill -STOP "${ranks[1]}"; }
asked() { kill -USR1 "$(pgrep -P $pid)"; }
one_asked() { kill -TERM "${ranks[1]}"; }
interrupted "killed rank of 4, gone on with by 3" 4 3 killed reply
[ "$how" = long ] && interrupted "stopped rank of 2, gone on with by 1" 2 1 stopped reply
interrupted "USR1 to mpirun of 2 in an intervention, gone on with by 8" 2 8 asked silenced
interrupted "TERM to one of 2 that share experts, gone on with by 3" 2 3 one_asked silenced --set residency=resident
[ "$how" = long ] && interrupted "killed rank of 3 in a contrast, gone on with by 2" 3 2 killed matched
[ "$how" = long ] && interrupted "TERM to one rank of 2 in a utility, gone on with by 3" 2 3 one_asked questions

# ---- ranks that differ, a full disk, nowhere to go ----
cp "$program" other && printf 'x' >>other
cp "$build/gatetape_mpi.so" .
cat >each <<'RANK'
#!/bin/sh
case $WHAT:$OMPI_COMM_WORLD_RANK in
program:2) exec ./other "$@" ;;
job:1) exec "$PROGRAM" "$@" --set seed=7 ;;
isa:1) GATETAPE_ISA=generic exec "$PROGRAM" "$@" ;;
file:1) exec "$PROGRAM" "$@" --set prompts.test.path=nowhere ;;
disk:*) export OMPI_MCA_btl=self,tcp OMPI_MCA_btl_tcp_if_include=lo ;;
esac
case $WHAT:$OMPI_COMM_WORLD_RANK in
disk:0) trap "" XFSZ; ulimit -f ${BLOCKS:-40}; exec "$PROGRAM" "$@" ;;
esac
exec "$PROGRAM" "$@"
RANK
chmod +x each
refused() { # what, code, text, settings
    local got code
    got=$(PROGRAM=$program WHAT=$1 timeout 60 mpirun -n 3 ./each run configs/jobs/ranks.json --out "refused-$1" "${@:4}" 2>&1)
    code=$?
    [ $code = "$2" ] || fail "$1: expected code $2: got $code: $got"
    grep -q "gatetape: error: .*$3" <<<"$got" || fail "$1: expected \"$3\": got $got"
    [ "$(grep -c 'gatetape: error:' <<<"$got")" = 1 ] || fail "$1: expected one line: got $got"
    echo "$1: $(grep -m1 'gatetape: error:' <<<"$got" | cut -c1-180)"
}
refused program 2 'expected the same program on all: rank 0 on .* has .*, rank 2 on'
refused job 2 'expected the same job and inputs on all: rank 0 .* rank 1 on'
refused isa 2 'expected the same instruction set on all: .* rank 1 on .* generic (GATETAPE_ISA'
refused file 2 'rank 1: .*nowhere'
refused disk 1 'rank 0: .*File too large'
timeout 120 mpirun -n 2 "$program" run configs/jobs/ranks.json --out refused-disk 2>log || { fail "full disk: not resumed"; cat log; }
diff -rq -x manifest.json -x events.jsonl whole refused-disk || fail "full disk: other bytes"
rm -rf refused-disk
export BLOCKS=200 # enough for the first files, not for a block of traces
refused disk 1 'traces.*File too large' --set residency=resident
exit $status
