#!/usr/bin/env bash
# The contrasts of the demo job on a few of its pairs: every table is there, controls go further than matched prompts,
# a selection silences cells in an intervention, the same command changes nothing.   test_contrasts.sh PROGRAM SOURCE_FOLDER
set -uo pipefail
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
program=$1 source=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failures=0
fail() {
    printf 'FAILED: %s\n' "$1"
    failures=$((failures + 1))
}
run() {
    "$program" run "$source/configs/jobs/contrast-demo.json" --out "$folder/run" --set prompts.restricted.limit=14 \
        --set prompts.ordinary.limit=14 >"$folder/out" 2>&1
}
run || { cat "$folder/out"; exit 1; }
for step in behaviour prefix prefix_shared intent; do
    for file in step.json contrast.json overall.csv layers.csv pairs.csv ranking.csv selection_rate.csv selection_probability.csv; do
        [ -s "$folder/run/$step/$file" ] || fail "$step/$file is not there"
    done
    [ "$(wc -l <"$folder/run/$step/pairs.csv")" = 15 ] || fail "$step/pairs.csv: expected 14 pairs"
    [ "$(wc -l <"$folder/run/$step/selection_rate.csv")" = 5 ] || fail "$step/selection_rate.csv: expected 4 cells"
    awk -F, 'NR > 1 && ($3 < 0 || $3 > 0.6932) && $1 != "difference" { bad = 1 } END { exit bad || NR < 6 }' \
        "$folder/run/$step/layers.csv" || fail "$step/layers.csv: expected JS from 0 to ln 2 of 5 layers"
done
[ -s "$folder/run/behaviour/selection_gradient.csv" ] || fail "behaviour/selection_gradient.csv is not there"
[ -e "$folder/run/intent/selection_gradient.csv" ] && fail "intent: prompts without targets have no gradient ranking"
# part,n_pairs,js,js_low,js_high,...
awk -F, '$1 == "contrast" { high = $5 } $1 == "control" { low = $4 } END { exit !(high > 0 && high < low) }' \
    "$folder/run/intent/overall.csv" || fail "intent: expected the matched prompts to be nearer than other topics"

cp -r "$folder/run" "$folder/first"
run || fail "the same command again"
diff -rq -x manifest.json -x events.jsonl -x '*.pdf' "$folder/first" "$folder/run" || fail "the same command changed a file"

cat >"$folder/silence.json" <<JOB
{"schema_version": 1, "models": {"demo": {"path": "$source/configs/demo/model", "chat_template": "phi35moe"}},
 "prompts": {"test": {"path": "$source/configs/demo/prompts/test_restricted.jsonl", "limit": 2}},
 "steps": [{"name": "silence", "kind": "intervention", "selection": "run/behaviour/selection_gradient.csv", "max_new_tokens": 4,
            "exclude_super": false, "random_sets": 0, "layer_matched_sets": 0, "traffic_matched_sets": 0}]}
JOB
"$program" run "$folder/silence.json" --out "$folder/silenced" >"$folder/out" 2>&1 || fail "silence: $(cat "$folder/out")"
[ "$(cut -d, -f3,4 "$folder/silenced/silence/cells.csv" | tail -n +2 | sort)" = \
    "$(cut -d, -f1,2 "$folder/run/behaviour/selection_gradient.csv" | tail -n +2 | sort)" ] || {
    fail "the silenced cells are not those of the selection"
    head -n 3 "$folder/silenced/silence/cells.csv"
}

[ "$failures" = 0 ] || exit 1
echo "contrasts of the demo model"
