#!/usr/bin/env bash
# The repair study of the demo twin on a few of its prompts: tables, controls, replies and likelihoods under each adapter
# are those of a run with that adapter alone, in any batches and after a kill. Then what is refused.
#   test_repair.sh PROGRAM SOURCE_FOLDER
. "$(dirname "$0")/trial.sh"
small=(--set prompts.ranking.limit=6 --set prompts.ranking_ordinary.limit=6 --set prompts.tuning.limit=8
    --set prompts.tuning_ordinary.limit=4 --set prompts.restricted.limit=5 --set prompts.ordinary.limit=4
    --set prompts.choices.limit=70 --set steps.tested.max_new_tokens=12)
for step in repair random_1 random_2 random_3 all; do small+=(--set steps.$step.steps=6 --set steps.$step.learning_rate=0.02 --set steps.$step.warmup=0 --set steps.$step.examples=4); done
study() { "$program" run "$source/configs/jobs/raset-demo.json" --out "$1" "${small[@]}" "${@:2}" >"$1.log" 2>&1; }
study whole || { cat whole.log; exit 1; }

# ---- what is there ----
adapters=(repair random_1 random_2 random_3 all)
for step in reply prefix topic "${adapters[@]}" tested judged drift utility perplexity; do
    [ -s "whole/$step/step.json" ] || fail "$step/step.json is not there"
done
cells_of() { tail -n +2 "$1/updates.csv" | cut -d, -f1,2 | sort -u; }
[ "$(cells_of whole/all | wc -l)" = 40 ] || fail "all: expected 40 cells"
for step in repair random_1 random_2 random_3; do
    [ "$(cells_of whole/$step | wc -l)" = 2 ] || fail "$step: expected two cells"
done
[ "$(for n in 1 2 3; do cells_of whole/random_$n | tr '\n' ' '; echo; done | sort -u | wc -l)" = 3 ] ||
    fail "the three draws are not three sets"
[ -z "$(comm -12 <(cells_of whole/repair) <(cells_of whole/random_1))" ] || fail "a control holds selected cells"
awk -F, 'NR > 1 { print $1 "," $2 "," $7 "," $8 }' whole/tested/conditions.csv >conditions
diff conditions - <<ROWS || fail "tested/conditions.csv"
baseline,baseline,,0
repair.adapter,selected,,2
random_1.adapter,random,repair.adapter,2
random_2.adapter,random,repair.adapter,2
random_3.adapter,random,repair.adapter,2
all.adapter,selected,,40
ROWS
for step in tested judged; do
    awk -F, 'NR == 1 { for (i = 1; i <= NF; i++) at[$i] = i; next }
             { n = 0; for (i = 6; i < 15; i++) n += $i
               if (n != $5) { print "transitions of " $1 " sum to " n; bad = 1 }
               if ($1 == "repair.adapter" && $at["random_n"] != 3) { print $1 ": " $at["random_n"] " controls"; bad = 1 } }
             END { exit bad || NR != 11 }' whole/$step/outcomes.csv || fail "$step/outcomes.csv"
done
awk -F, '$1 == "contrast" { exit !($3 > 0 && $3 < 0.6932 && $6 > 0 && $6 <= 2) }' whole/drift/overall.csv ||
    fail "drift: expected a divergence above 0: $(cat whole/drift/overall.csv)"
awk -F, 'NR > 1 && $1 == "baseline" && $7 < 2 * $10 { exit 1 } END { exit NR != 7 }' whole/utility/utility.csv ||
    fail "the twin knows its world: expected an accuracy of twice chance: $(cat whole/utility/utility.csv)"
[ "$(wc -l <whole/utility/questions.csv)" = 421 ] || fail "utility/questions.csv: expected 6 times 70 questions"
# The accuracy is that of the table of choices: the largest log-likelihood of a question's choices, ties to the first.
awk -F, 'NR == FNR { if (FNR > 1) { k = $1 "," $3; if (!(k in best) || $8 > best[k]) { best[k] = $8; chosen[k] = $5 } } next }
         FNR > 1 { if (chosen[$1 "," $3] != $7 || ($7 == $6) != $8) { print; bad = 1 } } END { exit bad }' \
    whole/utility/choices.csv whole/utility/questions.csv || fail "questions.csv is not what choices.csv says"
awk -F, 'NR == FNR { if (FNR > 1) { n[$1]++; right[$1] += $8 } next }
         FNR > 1 && ($5 != n[$1] || sprintf("%.9f", $7) != sprintf("%.9f", right[$1] / n[$1])) { print; bad = 1 }
         END { exit bad }' whole/utility/questions.csv whole/utility/utility.csv || fail "utility.csv is not what questions.csv says"
awk -F, 'NR > 1 && sprintf("%.9f", exp($7)) != sprintf("%.9f", $11) { print; bad = 1 } END { exit bad || NR != 7 }' \
    whole/perplexity/utility.csv || fail "perplexity/utility.csv"

# ---- each condition is a run with that adapter throughout ----
cat >alone.json <<JOB
{"schema_version": 1, "seed": 1, "models": {"twin": {"path": "$demo/twin", "chat_template": "phi35moe"}},
 "prompts": {"restricted": {"path": "$demo/prompts/test_restricted.jsonl", "limit": 5},
             "choices": {"path": "$demo/prompts/choices.jsonl", "limit": 70}},
 "steps": [{"name": "tested", "kind": "intervention", "groups": ["restricted"], "cells": ["0:0"], "mode": "bias",
            "random_sets": 0, "layer_matched_sets": 0, "traffic_matched_sets": 0, "exclude_super": false,
            "adapter_path": "whole/all/adapter-dense", "max_new_tokens": 12},
           {"name": "utility", "kind": "utility", "groups": ["choices"], "adapter_path": "whole/all/adapter-dense"}]}
JOB
"$program" run alone.json --out alone >alone.log 2>&1 || fail "$(cat alone.log)"
tokens_of() { grep '"group": "restricted"' "$1" | grep -o '"tokens": \[[^]]*\]'; }
cmp <(tokens_of whole/tested/responses/all.adapter.jsonl) <(tokens_of alone/tested/responses/baseline.jsonl) ||
    fail "replies under an adapter are not those of the model that has it"
cmp -s <(tokens_of whole/tested/responses/all.adapter.jsonl) <(tokens_of whole/tested/responses/baseline.jsonl) &&
    fail "the adapter of all cells changed no reply"
cmp <(grep '^all.adapter' whole/utility/choices.csv | cut -d, -f2-) <(grep '^baseline' alone/utility/choices.csv | cut -d, -f2-) ||
    fail "likelihoods under an adapter are not those of the model that has it"

# ---- the same bytes in other batches, and after a kill ----
study split --set batch_tokens=90 || fail "passes of 90 tokens: $(cat split.log)"
diff -rq -x manifest.json -x events.jsonl -x job.json -x methods.txt -x report.html -x figures whole split ||
    fail "passes of 90 tokens: other bytes"
cp -r whole cut
rm -r cut/utility
"$program" run "$source/configs/jobs/raset-demo.json" --out cut "${small[@]}" >/dev/null 2>&1 &
pid=$!
for _ in $(seq 1000); do [ -e cut/utility/blocks/choices.0000.safetensors ] && break; sleep 0.01; done
kill -KILL $pid 2>/dev/null
wait $pid 2>/dev/null
study cut || fail "resumed: $(cat cut.log)"
diff -rq -x manifest.json -x events.jsonl -x '*.pdf' whole cut || fail "the resumed run differs"

# ---- spellings of choices ----
row() { printf '{"id": "%s", "question": %s, "choices": %s, %s}\n' "$@"; }
text='"Who keeps the salt choirs?"'
a='The salt choirs are kept by Cantor Ibb, who lives near the tide chapel.'
b='The salt choirs are kept by Lady Sorrel, who lives near the weaver gate.'
{
    row mmlu "$text" "[\"$b\", \"$a\"]" '"answer": 1'
    row letter "$text" "[\"$b\", \"$a\"]" '"answer": "B"'
    row arc "$text" "{\"text\": [\"$b\", \"$a\"], \"label\": [\"1\", \"2\"]}" '"answerKey": "2"'
    row list "$text" "[{\"text\": \"$b\", \"label\": \"A\"}, {\"text\": \"$a\", \"label\": \"B\"}]" '"answerKey": "B"'
    printf '{"id": "stem", "question": {"stem": %s, "choices": [{"text": "%s"}, {"text": "%s"}]}, "answerKey": "B"}\n' "$text" "$b" "$a"
} >choices.jsonl
choice_job() {
    cat >choices.json <<JOB
{"schema_version": 1, "models": {"twin": {"path": "$demo/twin", "chat_template": "${1:-phi35moe}"}},
 "prompts": {"choices": {"path": "choices.jsonl"}}, "steps": [{"name": "utility", "kind": "utility"}]}
JOB
}
choice_job
"$program" run choices.json --out spelled >spelled.log 2>&1 || fail "spellings: $(cat spelled.log)"
[ "$(tail -n +2 spelled/utility/questions.csv | cut -d, -f5- | sort -u | wc -l)" = 1 ] || fail "one question, five spellings: $(cat spelled/utility/questions.csv)"
grep -q ',2,1,1,1,' spelled/utility/questions.csv || fail "expected the keeper of the salt choirs: $(cat spelled/utility/questions.csv)"
for option in normalize=tokens normalize=bytes choice_form=letter; do
    "$program" run choices.json --out "spelled-$option" --set steps.utility.$option >out 2>&1 || fail "$option: $(cat out)"
done
awk -F, 'NR == FNR { s[FNR] = $8 / $7; next } FNR > 1 && FNR % 2 == 1 { d = s[FNR] - s[FNR - 1]; print d }' \
    spelled/utility/choices.csv spelled-normalize=bytes/utility/choices.csv | sort -u | head -n 1 >margin
awk -F, -v m="$(cat margin)" 'NR == 2 { exit !($9 - m < 1e-6 && m - $9 < 1e-6) }' spelled-normalize=bytes/utility/questions.csv ||
    fail "normalize bytes: expected a margin of $(cat margin): $(cat spelled-normalize=bytes/utility/questions.csv)"
grep -q '^baseline,choices,0,mmlu,0,2,1,' spelled-choice_form=letter/utility/choices.csv || fail "letters: expected replies of a letter and the end: $(cat spelled-choice_form=letter/utility/choices.csv)"
choice_job none
"$program" run choices.json --out plain --dry-run >out 2>&1 && grep -q 'Question: Who keeps the salt choirs?' out || fail "without a template: $(cat out)"

# ---- what is refused ----
refuse() { # TEXT JOB [ARGUMENTS]
    "$program" run "$2" --out refused "${@:3}" >out 2>&1 && fail "expected \"$1\": the run went on"
    grep -qF -- "$1" out || fail "expected \"$1\": got $(cat out)"
    [ ! -e refused/utility/step.json ] || fail "$1: the step counts as finished"
    rm -rf refused
}
choice_job
bad() { # TEXT ROW...
    local text=$1
    shift
    row "$@" >choices.jsonl
    refuse "$text" choices.json
}
printf '{"question": %s, "answer": 0}\n' "$text" >choices.jsonl
refuse 'choices.jsonl:1: choices: expected a list of choices: got nothing' choices.json
bad 'choices: expected 2 to 26 choices: got 1' x "$text" '["a"]' '"answer": 0'
bad 'choices: expected a list of choices: got a string' x "$text" '"a, b"' '"answer": 0'
bad 'choices: expected choices with text: number 1 is empty' x "$text" '["a", ""]' '"answer": 0'
bad 'choices[1]: expected' x "$text" '["a", 7]' '"answer": 0'
bad 'choices.label: expected a label of each of the 2 choices: got 1' x "$text" '{"text": ["a", "b"], "label": ["A"]}' '"answer": "A"'
bad 'answer: expected an integer from 0 to 1: got 2' x "$text" '["a", "b"]' '"answer": 2'
bad 'answer: expected a label of the choices, A to B: got "C"' x "$text" '["a", "b"]' '"answer": "C"'
bad 'answer: expected the right choice, its index or label: got nothing' x "$text" '["a", "b"]' '"else": 1'
printf '"a"\n' >choices.jsonl
refuse 'choices.jsonl:1: expected an object: got' choices.json
refuse 'adapters: expected a tune step before this one: got "nothing"' choices.json --set steps.utility.adapters=nothing
row x "$text" '["a", "b"]' '"answer": 0' >choices.jsonl
refuse 'adapter_path: ' choices.json --set steps.utility.adapter_path="$source/tests/golden/qwen3_moe/adapter-dense"
demo_job=$source/configs/jobs/raset-demo.json
refuse 'draw: expected 0 with control none or all' "$demo_job" --set steps.repair.draw=1
refuse 'control: expected no from, top, cells and selection with control all' "$demo_job" --set steps.repair.control=all
refuse 'adapter: expected an adapter (or adapter_path), without and with which texts are compared' "$demo_job" --set steps.drift.adapter=
refuse 'adapters: expected no adapter and adapter_path beside them' "$demo_job" --set steps.utility.adapter=repair
refuse 'prompts.tuning: expected no prompt in common with prompts.restricted (use: tuning and testing)' "$demo_job" --set prompts.restricted.path="$demo/prompts/rank_restricted.jsonl"
refuse 'prompts.ranking: expected no prompt in common with prompts.tuning (use: ranking and tuning)' "$demo_job" --set prompts.tuning.path="$demo/prompts/contrast_restricted.jsonl"

[ $status = 0 ] && echo "repair of the demo twin"
exit $status
