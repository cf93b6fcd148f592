#!/usr/bin/env bash
# The shipped job of the objectives on the demo model: the preference is learned, the terms on routers hold what they
# say, the bits depend neither on the passes nor on kills and resumes. Then what is refused.
#   test_tune_objectives.sh PROGRAM SOURCE_FOLDER
. "$(dirname "$0")/trial.sh"
cp "$source/configs/jobs/objectives-demo.json" shipped.json
sed "s|\.\./demo/|$demo/|" shipped.json >job.json
run() { "$program" run job.json --out "$1" "${@:2}" 2>"$1.log"; }
same() { diff -rq -x manifest.json -x events.jsonl -x '*.pdf' -x job.json -x methods.txt whole "$1"; }
# column RUN STEP NAME: a column of training.csv, by its name
column() { awk -F, -v name="$3" 'NR == 1 {for (i = 1; i <= NF; i++) if ($i == name) c = i} NR > 1 {print $c}' "$1/$2/training.csv"; }
falls() { awk 'NF {if (!n++) first = $1; last = $1} END {exit !(n > 1 && last < first)}'; } # of the numbers that are there
less() { awk -v a="$1" -v b="$2" 'BEGIN {exit !(a < b)}'; }

"$program" run "$source/configs/jobs/objectives-demo.json" --out whole 2>whole.log || { cat whole.log; exit 1; }
steps=(preference kept anchored)
for step in "${steps[@]}"; do
    [ -s "whole/$step/adapter-dense/adapter_model.safetensors" ] && [ -s "whole/$step/step.json" ] || fail "$step: files"
    [ ! -e "whole/$step/checkpoint.safetensors" ] || fail "$step: the checkpoint of a finished training is left"
done

# ---- what is learned ----
for name in loss held_out_loss; do
    column whole preference $name | falls || fail "preference: expected $name to fall: $(column whole preference $name)"
done
[ "$(column whole preference loss | sed -n 2p | cut -c1-8)" = 0.693147 ] || fail "expected ln 2 before the first step"
[ "$(column whole preference preference_margin | sed -n 2p)" = 0 ] || fail "expected a margin of 0 before the first step"
less 0.8 "$(column whole preference preferred | tail -n 1)" || fail "expected the preferred continuations to gain"
column whole kept total_loss | paste - <(column whole kept loss) <(column whole kept router_kl) |
    awk '{d = $1 - $2 - 2 * $3; if (d * d > 1e-16) exit 1}' || fail "kept: expected total = loss + 2 router_kl"
[ "$(column whole kept router_kl | head -n 1)" = 0 ] || fail "kept: expected routers that have not moved before the first step"
[ -z "$(column whole kept router_distance | tr -d '\n')$(column whole anchored router_kl | tr -d '\n')" ] ||
    fail "expected no numbers of terms that are off"
rows=whole/anchored/adapter-dense/router_rows.safetensors
[ -s $rows ] && [ ! -e whole/kept/adapter-dense/router_rows.safetensors ] || fail "expected router rows of one step alone"
[ "$(cut -d, -f1-3 whole/anchored/router_rows.csv | tr '\n' ' ')" = "layer,expert,parameters 1,2,96 3,4,96 " ] ||
    fail "expected two router rows: $(cat whole/anchored/router_rows.csv)"
cmp -s whole/before/scores.csv whole/after/scores.csv && fail "the adapter changed nothing of a later step"
cp -r whole/anchored/adapter-dense with && cp -r with without && rm without/router_rows.safetensors
for folder_of in with without; do
    run $folder_of-rows --set steps.after.adapter= --set steps.after.adapter_path=$folder_of || fail "$(cat $folder_of-rows.log)"
done
cmp -s whole/after/scores.csv with-rows/after/scores.csv || fail "the same adapter from its folder: other scores"
cmp -s whole/after/scores.csv without-rows/after/scores.csv && fail "router rows are not applied"
# A heavy term against one that is measured and hardly weighs.
weak=(--set steps.kept.router_kl=1e-6 --set steps.anchored.router_anchor=1e-6)
heavy=(--set steps.kept.router_kl=300 --set steps.anchored.router_anchor=30)
long=(--set steps.kept.steps=12 --set steps.anchored.steps=12 --set steps.preference.steps=1)
run weak "${weak[@]}" "${long[@]}" && run heavy "${heavy[@]}" "${long[@]}" || fail "$(cat weak.log heavy.log)"
less "$(column heavy kept router_kl | tail -n 1)" "$(column weak kept router_kl | tail -n 1)" ||
    fail "expected a heavy KL to hold the routers: $(column weak kept router_kl) and $(column heavy kept router_kl)"
less "$(column heavy anchored router_distance | tail -n 1)" "$(column weak anchored router_distance | tail -n 1)" ||
    fail "expected a heavy anchor to draw the routers: $(column weak anchored router_distance) and $(column heavy anchored router_distance)"

# ---- the same bits ----
for n in 1 2 4 8; do
    run "split$n" --set batch_prompts=$n || fail "batch_prompts $n: $(cat "split$n.log")"
    same "split$n" || fail "passes of $n examples: other bytes"
done
run tokens --set batch_tokens=150 && same tokens || fail "passes of 150 tokens: other bytes"
n_resumed=0
for try in 1 2 3 4 5 6; do
    step=${steps[$((try % 3))]}
    "$program" run job.json --out cut --set "steps.$step.checkpoint_every=1" 2>cut.log &
    pid=$!
    for _ in $(seq 3000); do [ -e "cut/$step/checkpoint.safetensors" ] && break; sleep 0.01; done
    sleep "0.0$((try * 7 % 10))"
    kill -KILL $pid 2>/dev/null
    wait $pid 2>/dev/null
    [ -e "cut/$step/checkpoint.safetensors" ] && n_resumed=$((n_resumed + 1))
    run cut --set "steps.$step.checkpoint_every=1" || fail "killed in $step: resuming failed: $(cat cut.log)"
    grep -o "$step: goes on after step [0-9]*" cut.log
    same cut || fail "killed in $step: the resumed run differs"
    rm -rf cut
done
[ $n_resumed -gt 2 ] || fail "only $n_resumed of 6 runs were cut inside a training"

# ---- a training that diverges ----
run wild --set steps.preference.learning_rate=1e6
[ $? = 1 ] || fail "a loss that is not finite: expected exit code 1: $(tail -n 1 wild.log)"
grep -qE 'error: step preference, training step [0-9]+, not taken .*group pairs, example "contrast-restricted-[0-9]+": .*expected a finite number' wild.log ||
    fail "a loss that is not finite: $(tail -n 1 wild.log)"

# ---- bad input ----
bad() { # "text of the message" [arguments]
    "$program" run job.json --out bad "${@:2}" 2>bad.log
    [ $? = 2 ] || fail "$1: expected exit code 2: $(cat bad.log)"
    grep 'gatetape: error: ' bad.log | grep -qF -- "$1" || fail "expected \"$1\": got $(tail -n 1 bad.log)"
    [ ! -e bad ] || fail "$1: expected no run folder"
    rm -rf bad
}
bad 'expected other_target, which is set against target: got none' --set "prompts.pairs.path=$demo/prompts/rank_restricted.jsonl"
bad 'expected other_target, which is set against target: got none' --set "prompts.held_out.path=$demo/prompts/rank_restricted.jsonl"
bad 'steps.preference.beta: expected a number from 1e-06 to 1e+06: got 0' --set steps.preference.beta=0
bad 'steps.kept.router_temperature: expected a number from 0.001 to 1000: got 0' --set steps.kept.router_temperature=0
bad 'steps.kept.router_kl: expected a number from 0 to 1e+06: got -1' --set steps.kept.router_kl=-1
bad 'steps.kept.dropout: expected a number from 0 to 0.99: got 1' --set steps.kept.dropout=1
bad 'steps.anchored.gate_rate: expected a number from 0 to 1e+06: got -1' --set steps.anchored.gate_rate=-1
bad 'top: expected top, cells or selection' --set steps.anchored.cells=
printf 'x' >without/router_rows.safetensors
run damaged --set steps.after.adapter= --set steps.after.adapter_path=without
[ $? = 0 ] && fail "a damaged file of router rows was taken"
grep -q 'router_rows.safetensors: expected' damaged.log || fail "damaged router rows: $(tail -n 1 damaged.log)"
bad 'objective: expected' --set steps.preference.objective=dpo
bad 'router_tokens: expected' --set steps.kept.router_tokens=some
run idle --set steps.kept.cells=4:1 --set steps.anchored.cells=4:1 --set steps.anchored.gate_rows=false --set steps.preference.steps=1
grep -q 'router_kl has no effect: no router stands behind the cells' idle.log || fail "expected a warning: $(cat idle.log)"
grep -q 'router_anchor has no effect: cells of one layer' idle.log || fail "expected a warning: $(cat idle.log)"
exit $status
