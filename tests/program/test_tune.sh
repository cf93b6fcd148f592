#!/usr/bin/env bash
# Trains two cells of the demo model: the loss falls, the adapter changes what a later step counts, and the bits of the
# adapter depend neither on how a step's examples share passes nor on kills, stops and resumes. Then what is refused.
#   test_tune.sh PROGRAM SOURCE_FOLDER
. "$(dirname "$0")/trial.sh"

# Targets that the model does not know: there is something to learn.
sed -E 's/"target": "[^"]*"/"target": "The lantern is rousing under a bright sign."/' \
    "$demo/prompts/rank_restricted.jsonl" >tuning.jsonl
head -n 8 tuning.jsonl | sed -E 's/rank-/held-/; s/"prompt": "/&Now, /' >held.jsonl
cat >job.json <<JOB
{"schema_version": 1, "models": {"m": {"path": "$demo/model", "chat_template": "phi35moe"}},
 "prompts": {"tuning": {"path": "tuning.jsonl", "limit": 20, "use": "tuning"},
             "held": {"path": "held.jsonl"},
             "ranking": {"path": "$demo/prompts/rank_ordinary.jsonl", "limit": 12, "use": "ranking"},
             "testing": {"path": "$demo/prompts/test_restricted.jsonl", "limit": 12, "use": "testing"}},
 "steps": [{"name": "before", "kind": "activation", "groups": ["ranking", "testing"]},
           {"name": "tune", "kind": "tune", "groups": ["tuning"], "cells": ["2:1", "3:4"], "rank": 4, "steps": 10,
            "examples": 8, "learning_rate": 0.02, "warmup": 2, "weight_decay": 0.01, "checkpoint_every": 1},
           {"name": "after", "kind": "activation", "groups": ["ranking", "testing"], "adapter": "tune"}]}
JOB
run() { "$program" run job.json --out "$1" "${@:2}" 2>"$1.log"; }
same() { diff -rq -x manifest.json -x events.jsonl -x '*.pdf' -x job.json -x methods.txt whole "$1"; }

run whole || { cat whole.log; exit 1; }
[ ! -e whole/tune/checkpoint.safetensors ] || fail "the checkpoint of a finished training is left"
[ "$(wc -l <whole/tune/training.csv)" = 11 ] || fail "expected 10 rows of training: $(cat whole/tune/training.csv)"
awk -F, 'NR == 2 {first = $2} END {exit !($2 < 0.8 * first)}' whole/tune/training.csv ||
    fail "expected a loss that falls by a fifth: $(cat whole/tune/training.csv)"
cmp -s whole/before/scores.csv whole/after/scores.csv && fail "the adapter changed nothing of the later step"
cut -d, -f1-3 whole/tune/updates.csv | tr '\n' ' ' |
    grep -q '^layer,expert,projection 2,1,gate 2,1,up 2,1,down 3,4,gate 3,4,up 3,4,down $' ||
    fail "expected the updates of two cells: $(cat whole/tune/updates.csv)"
"$program" verify-adapter whole/tune/adapter-dense --model "$demo/model" >verified 2>&1 || fail "$(cat verified)"

# ---- the same bits ----
for n in 1 2 4 8; do
    run "split$n" --set batch_prompts=$n || fail "batch_prompts $n: $(cat "split$n.log")"
    same "split$n" || fail "passes of $n examples: other bytes"
done
run tokens --set batch_tokens=120 && same tokens || fail "passes of 120 tokens: other bytes"
run path --set steps.after.adapter= --set steps.after.adapter_path=whole/tune/adapter-dense || fail "$(cat path.log)"
cmp -s whole/after/scores.csv path/after/scores.csv || fail "the same adapter from its folder: other scores"
for form in sparse fused; do
    run $form --set steps.tune.form=$form && cmp -s whole/after/scores.csv $form/after/scores.csv ||
        fail "the adapter in the form $form: other scores"
done

# ---- held-out prompts ----
held=(--set steps.tune.evaluate=held --set steps.tune.evaluate_every=2 --set steps.tune.patience=2
    --set steps.tune.steps=400 --set steps.tune.learning_rate=0.1)
run held "${held[@]}" || fail "held-out prompts: $(cat held.log)"
awk -F, 'NR > 1 {
    last = $1
    if (($8 == "") != ($1 % 2)) exit 1
    if ($8 != "" && (least == "" || $8 < least)) {least = $8; best = $1}
} END {exit !(last < 400 && best > 0 && last == best + 4)}' held/tune/training.csv ||
    fail "expected an end two measures after the least held-out loss: $(cut -d, -f1,2,8 held/tune/training.csv)"
# What was written is the state of that step: a training of so many steps ends with its held-out loss.
step=$(grep -o '"step_taken": [0-9]*' held/tune/step.json | grep -o '[0-9]*')
[ "$step" = "$(awk -F, 'NR > 1 && $8 != "" && (l == "" || $8 < l) {l = $8; b = $1} END {print b}' held/tune/training.csv)" ] ||
    fail "expected the step of the least held-out loss: got $step"
run until --set steps.tune.learning_rate=0.1 --set steps.tune.schedule=constant --set steps.tune.steps=400 \
    --set steps.tune.evaluate=held --set steps.tune.evaluate_every=2 --set steps.tune.patience=2
run exact --set steps.tune.learning_rate=0.1 --set steps.tune.schedule=constant \
    --set steps.tune.steps="$(grep -o '"step_taken": [0-9]*' until/tune/step.json | grep -o '[0-9]*')"
cmp until/tune/adapter-dense/adapter_model.safetensors exact/tune/adapter-dense/adapter_model.safetensors ||
    fail "the best state is not that of its step"
"$program" run job.json --out cut "${held[@]}" 2>cut.log &
pid=$!
for _ in $(seq 400); do [ -e cut/tune/checkpoint.safetensors ] && break; sleep 0.01; done
sleep 0.1
kill -KILL $pid 2>/dev/null
wait $pid 2>/dev/null
[ -e cut/tune/checkpoint.safetensors ] || fail "held-out prompts: the run was not cut inside the training"
run cut "${held[@]}" || fail "held-out prompts, resumed: $(cat cut.log)"
diff -rq -x manifest.json -x events.jsonl -x '*.pdf' held cut || fail "held-out prompts: the resumed run differs"
rm -rf cut

# ---- other cells ----
cat >chosen.json <<JOB
{"schema_version": 1, "models": {"m": {"path": "$demo/model", "chat_template": "phi35moe"}},
 "prompts": {"tuning": {"path": "tuning.jsonl", "limit": 20, "use": "tuning"},
             "ordinary": {"path": "$demo/prompts/rank_ordinary.jsonl", "limit": 12},
             "restricted": {"path": "$demo/prompts/test_restricted.jsonl", "limit": 12},
             "pairs": {"path": "$demo/prompts/contrast_restricted.jsonl", "limit": 12}},
 "steps": [{"name": "activation", "kind": "activation", "groups": ["ordinary", "restricted"]},
           {"name": "contrast", "kind": "contrast", "groups": ["pairs"], "bootstraps": 20},
           {"name": "ranked", "kind": "tune", "groups": ["tuning"], "from": ["activation"], "top": [3], "steps": 2,
            "rank_groups": ["restricted", "ordinary"], "projections": ["down"]},
           {"name": "selected", "kind": "tune", "groups": ["tuning"], "from": ["contrast"], "steps": 2},
           {"name": "matched", "kind": "tune", "groups": ["tuning"], "from": ["contrast"], "steps": 2,
            "control": "layer_matched"},
           {"name": "gradient", "kind": "gradient", "loss": "target", "groups": ["restricted"], "adapter": "selected"},
           {"name": "drift", "kind": "contrast", "groups": ["pairs"], "adapter": "selected", "bootstraps": 20},
           {"name": "report", "kind": "report"}]}
JOB
cells_of() { tail -n +2 "$1" | cut -d, -f1,2 | sort -u; }
"$program" run chosen.json --out chosen 2>chosen.log || fail "chosen cells: $(cat chosen.log)"
[ "$(cells_of chosen/ranked/updates.csv | wc -l)" = 3 ] || fail "expected three ranked cells"
[ "$(cells_of chosen/selected/updates.csv)" = "$(cells_of chosen/contrast/selection_gradient.csv)" ] ||
    fail "expected the cells of the contrast: $(cat chosen/selected/updates.csv)"
layers() { cells_of "$1" | cut -d, -f1 | uniq -c; }
[ "$(layers chosen/selected/updates.csv)" = "$(layers chosen/matched/updates.csv)" ] ||
    fail "expected as many cells in each layer: $(cat chosen/matched/updates.csv)"
[ -z "$(comm -12 <(cells_of chosen/selected/updates.csv) <(cells_of chosen/matched/updates.csv))" ] ||
    fail "a control holds selected cells"
cmp -s chosen/contrast/overall.csv chosen/drift/overall.csv && fail "the adapter changed nothing of a contrast"
"$program" run chosen.json --out planned --dry-run >plan 2>&1 && grep -q 'training: 2 steps of 8 examples, ' plan ||
    fail "the plan: $(cat plan)"

# ---- kills and stops ----
begun=$(date +%s%N)
run timed >/dev/null
duration=$((($(date +%s%N) - begun) / 1000000 + 1))
n_resumed=0
for try in 1 2 3 4 5 6 7 8 9 10; do
    signal=$([ $((try % 3)) = 0 ] && echo TERM || echo KILL)
    "$program" run job.json --out cut 2>cut.log &
    pid=$!
    moment=$((duration * (try + 1) / 12))
    # not before the first checkpoint, so that there is something to go on from
    for _ in $(seq 400); do [ -e cut/tune/checkpoint.safetensors ] && break; sleep 0.01; done
    sleep "$((moment / 4000)).$(printf %03d $((moment / 4 % 1000)))"
    kill -$signal $pid 2>/dev/null
    wait $pid 2>/dev/null
    [ -e cut/tune/checkpoint.safetensors ] && n_resumed=$((n_resumed + 1))
    run cut || fail "SIG$signal at try $try: resuming failed: $(cat cut.log)"
    same cut || fail "SIG$signal at try $try: the resumed run differs"
    grep -o 'goes on after step [0-9]*' cut.log
    [ -z "$(find cut -name '*.partial-*')" ] || fail "SIG$signal at try $try: left-overs"
    rm -rf cut
done
[ $n_resumed -gt 2 ] || fail "only $n_resumed of 10 runs were cut inside the training"
echo "$n_resumed of 10 runs went on from a checkpoint, all with the same bytes"

# ---- checkpoints of others ----
# kept FOLDER [arguments]: a run that was killed inside its training
kept() {
    "$program" run job.json --out "$1" --set steps.tune.steps=4000 "${@:2}" 2>/dev/null &
    local pid=$!
    for _ in $(seq 1000); do [ -e "$1/tune/checkpoint.safetensors" ] && break; sleep 0.01; done
    kill -KILL $pid
    wait $pid 2>/dev/null
    [ -e "$1/tune/checkpoint.safetensors" ] || fail "$1: no checkpoint"
}
refused() { # WHAT [arguments]
    "$program" run job.json --out one --set steps.tune.steps=4000 2>refused.log
    [ $? = 2 ] || fail "a checkpoint of $1: expected exit code 2: $(tail -n 1 refused.log)"
    grep -qE "error: .*checkpoint.safetensors: expected a checkpoint $2" refused.log ||
        fail "a checkpoint of $1: $(tail -n 1 refused.log)"
}
kept one
kept other --set steps.tune.learning_rate=0.01
cp other/tune/checkpoint.safetensors one/tune/
refused "another job" 'of the job [0-9a-f]{64}: got one of the job [0-9a-f]{64}$'
cp -r "$demo/model" model2 && sed -i 's/"rms_norm_eps": 1e-05/"rms_norm_eps": 2e-05/' model2/config.json
rm -r other && kept other --set models.m.path=model2
cp other/tune/checkpoint.safetensors one/tune/
refused "another model" 'of the model [0-9a-f]{64}: got one of the model [0-9a-f]{64}$'
rm -r one && kept one
printf 'x' | dd of=one/tune/checkpoint.safetensors bs=1 seek=2000 conv=notrunc 2>/dev/null
refused "damaged bytes" 'as it was written: got a damaged one'

# ---- a training that diverges ----
run wild --set steps.tune.learning_rate=1e6 --set steps.tune.schedule=constant
[ $? = 1 ] || fail "a loss that is not finite: expected exit code 1: $(tail -n 1 wild.log)"
grep -qE 'error: step tune, training step [0-9]+, not taken \(tune/checkpoint.safetensors and adapter-dense: after step [0-9]+\): group tuning, example "rank-restricted-[0-9]+": .*expected a finite number' wild.log ||
    fail "a loss that is not finite: $(tail -n 1 wild.log)"
[ ! -e wild/tune/step.json ] || fail "a training that diverged counts as finished"
[ -e wild/tune/adapter-dense/adapter_model.safetensors ] || fail "the last good state is not there"

# ---- bad input ----
bad() { # "text of the message" [arguments]
    "$program" run job.json --out bad "${@:2}" 2>bad.log
    [ $? = 2 ] || fail "$1: expected exit code 2: $(cat bad.log)"
    grep 'gatetape: error: ' bad.log | grep -qF -- "$1" || fail "expected \"$1\": got $(tail -n 1 bad.log)"
    [ ! -e bad ] || fail "$1: expected no run folder"
    rm -rf bad
}
bad 'steps.tune.cells: expected LAYER:EXPERT' --set steps.tune.cells=9:1
bad 'step tune: rank: expected 1 to 96: got 97' --set steps.tune.rank=97
bad 'projections: expected gate, up or down: got "side"' --set steps.tune.projections=gate,side
bad 'steps[1].top: expected top, cells or selection' --set steps.tune.cells=
bad 'steps[1].top: expected one of top' --set steps.tune.selection=x.csv
bad 'prompts.tuning: expected no prompt in common with prompts.held (held out)' --set steps.tune.evaluate=held \
    --set prompts.held.path=tuning.jsonl
bad 'steps[1].evaluate: expected a prompt group of the job: got "none"' --set steps.tune.evaluate=none
bad 'steps[1].patience: expected groups to evaluate: got none' --set steps.tune.patience=1
bad 'expected a target of at most' --set prompts.tuning.max_tokens=8
bad 'warmup: expected at most' --set steps.tune.warmup=11
bad 'expected groups whose use is tuning: got tuning, whose use is testing' --set prompts.tuning.use=testing
bad 'steps[2].adapter: expected a tune step before this one' --set steps.after.adapter=tone
bad 'steps[2].adapter: expected adapter or adapter_path: got both' --set steps.after.adapter_path=whole/tune
sed 's/, "target": "[^"]*"//' tuning.jsonl >plain.jsonl
bad 'expected a target, since the step is about targets: got none' --set prompts.tuning.path=plain.jsonl
printf 'layer,expert\n2,99\n' >cells.csv
bad 'cells.csv:2: ' --set steps.tune.cells= --set steps.tune.selection=cells.csv
exit $status
