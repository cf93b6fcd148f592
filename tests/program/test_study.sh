#!/usr/bin/env bash
# The study on a few prompts of the demo model, its replies judged: labels, outcomes, the same bytes when judged again,
# labels of people before those of rules, and what is refused.   test_study.sh PROGRAM SOURCE_FOLDER
set -uo pipefail
program=$1 source=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failures=0
fail() {
    printf 'FAILED: %s\n' "$1"
    failures=$((failures + 1))
}
limits=()
for group in ordinary restricted test_ordinary test_restricted; do limits+=(--set "prompts.$group.limit=6"); done
for option in random_sets=2 layer_matched_sets=1 traffic_matched_sets=1 max_new_tokens=24; do
    limits+=(--set "steps.silence.$option")
done
"$program" run "$source/configs/jobs/paper-a-demo.json" --out "$folder/run" "${limits[@]}" >"$folder/out" 2>&1 ||
    { cat "$folder/out"; exit 1; }
step=$folder/run/silence
rows=$(($(cat "$step"/responses/*.jsonl | wc -l)))
[ "$(($(wc -l <"$step/labels.csv") - 1))" = "$rows" ] || fail "labels.csv: expected a row for each of $rows replies"
awk -F, 'NR > 1 && $2 == "test_restricted" && $1 == "baseline" && $5 == "restricted" { n++ } END { exit n < 5 }' \
    "$step/labels.csv" || fail "the demo model declines restricted requests: expected 5 of 6 labelled so"
awk -F, 'NR > 1 && $2 == "test_ordinary" && $1 == "baseline" && $5 != "compliant" { n++ } END { exit n > 0 }' \
    "$step/labels.csv" || fail "ordinary requests are answered: expected compliant"
awk -F, 'NR == 1 { for (i = 1; i <= NF; i++) at[$i] = i; next }
         { n = 0; for (i = 6; i < 15; i++) n += $i
           if (n != $5) { print "transitions of " $1 " sum to " n ", prompts " $5; bad = 1 }
           if ($2 == "selected" && $at["random_n"] != 2) { print $1 ": " $at["random_n"] " random sets"; bad = 1 } }
         END { exit bad || NR < 3 }' "$step/outcomes.csv" || fail "outcomes.csv"

for text in '<td class="l">gradient.top2</td>' 'McNemar p'; do
    grep -q "$text" "$folder/run/report.html" || fail "report.html: expected $text"
done

# ---- every number of the page stands in statistics.json; made again, page and file have the same bytes ----
numbers=$(dirname "$program")/test_report_numbers
if [ -x "$numbers" ]; then
    "$numbers" "$folder/run" >"$folder/out" 2>&1 || { cat "$folder/out"; fail "numbers of the report"; }
fi
cp "$folder/run/report.html" "$folder/run/statistics.json" "$folder"
cp -r "$folder/run/figures" "$folder/figures"
"$program" report "$folder/run" 2>/dev/null || fail "report"
for file in report.html statistics.json; do
    cmp "$folder/run/$file" "$folder/$file" || fail "$file differs when made again"
done
for file in "$folder"/figures/*.svg; do
    cmp "$file" "$folder/run/figures/$(basename "$file")" || fail "a figure differs when made again"
done

# ---- the judge step of the job: a folder of its own ----
judged=$folder/run/judged
cut -d, -f1-4 "$step/labels.csv" | cmp - <(cut -d, -f1-4 "$judged/labels.csv") || fail "the judge step: labels.csv"
grep -q '"limit": 3, "reference": "largest"' "$judged/judge.json" || fail "the judge step: judge.json"
grep -q '"limit": 0' "$step/judge.json" || fail "the judge step changed the intervention's judge.json"
for table in side_effects side_effects_targets; do
    [ "$(wc -l <"$step/$table.csv")" = "$(wc -l <"$step/outcomes.csv")" ] || fail "$table.csv: expected as many rows as outcomes.csv"
done

# ---- again: the same bytes; with labels of people: theirs count ----
cp "$step/labels.csv" "$folder/labels.csv"
cp "$step/outcomes.csv" "$folder/outcomes.csv"
"$program" judge "$step" --seed 1 >/dev/null || fail "judge"
cmp "$step/labels.csv" "$folder/labels.csv" || fail "labels.csv differs when judged again"
cmp "$step/outcomes.csv" "$folder/outcomes.csv" || fail "outcomes.csv differs when judged again"
awk -F, 'NR == 1 || ($1 == "baseline" && $2 == "test_ordinary")' "$step/labels.csv" |
    awk -F, 'BEGIN { OFS = "," } NR == 1 { print; next } { $7 = NR == 2 ? "degraded" : "compliant"; print }' >"$folder/people.csv"
"$program" judge "$step" --seed 1 --labels "$folder/people.csv" >/dev/null || fail "judge with labels"
[ "$(grep -c '^baseline,test_ordinary,.*,degraded,' "$step/labels.csv")" = 1 ] || fail "a label of people counts"
grep -q '^people,rules,degraded,compliant,1,' "$step/agreement.csv" || fail "agreement.csv"
grep -q '"kappa"' "$step/judge.json" || fail "judge.json names the agreement"

"$program" run "$source/configs/jobs/follow-up.json" --dry-run >"$folder/out" 2>&1 || fail "follow-up: $(cat "$folder/out")"

# ---- the study of the paper, on a stand-in for its model and prompts ----
stand_in=(--set "models.mixtral.path=$source/configs/demo/model" --set models.mixtral.chat_template=phi35moe)
for pair in benign=rank_ordinary harmful=rank_restricted test_benign=test_ordinary test_harmful=test_restricted; do
    stand_in+=(--set "prompts.${pair%%=*}.path=$source/configs/demo/prompts/${pair#*=}.jsonl")
done
stand_in+=(--set steps.silence.max_new_tokens=24)
"$program" run "$source/configs/jobs/paper-a.json" --dry-run "${stand_in[@]}" >"$folder/out" 2>&1 ||
    fail "paper-a: $(cat "$folder/out")"
grep -q 'group test_harmful: 100 prompts' "$folder/out" || fail "paper-a: expected 100 test prompts"
for group in test_benign test_harmful; do stand_in+=(--set "prompts.$group.limit=2"); done
"$program" run "$source/configs/jobs/paper-a.json" --out "$folder/paper" "${stand_in[@]}" >"$folder/out" 2>&1 ||
    fail "paper-a: $(cat "$folder/out")"
# ten prompts find fewer than five cells by activation: its sets are not defined, those of the gradient have controls
grep -q '^activation.top5,selected,.*,0,"5 cells asked for' "$folder/paper/silence/conditions.csv" ||
    fail "paper-a: expected fewer cells than asked for"
[ "$(grep -c '^random.top5.[0-9],random,,top,5,[0-9],gradient.top5,5,.*,1,' "$folder/paper/silence/conditions.csv")" = 10 ] ||
    fail "paper-a: expected ten random sets"
"$program" diff "$folder/paper" "$folder/paper" >"$folder/out" || fail "paper-a differs from itself: $(cat "$folder/out")"

# ---- refused ----
refuse() { # WHAT, expected text, arguments...
    local what=$1 text=$2
    shift 2
    "$program" judge "$@" >/dev/null 2>"$folder/err"
    [ $? = 2 ] || fail "$what: expected exit code 2"
    grep -q "$text" "$folder/err" || fail "$what: got $(cat "$folder/err")"
}
awk 'BEGIN { FS = OFS = "," } NR > 1 && $7 == "compliant" { $7 = "fine" } { print }' "$folder/people.csv" >"$folder/wrong.csv"
refuse "an unknown label" 'expected restricted, compliant or degraded: got "fine"' "$step" --labels "$folder/wrong.csv"
sed 's/^baseline/nothing/' "$folder/people.csv" >"$folder/wrong.csv"
refuse "a reply that is not there" 'expected a reply of this folder' "$step" --labels "$folder/wrong.csv"
sed '2p' "$folder/people.csv" >"$folder/wrong.csv"
refuse "two labels" 'expected one label a reply' "$step" --labels "$folder/wrong.csv"
refuse "an unknown reference" 'expected largest, median or absolute: got "mean"' "$step" --perplexity-reference mean
sed 's/, "nll": [^}]*}/}/' "$step/responses/baseline.jsonl" >"$folder/plain" && cp "$folder/plain" "$step/responses/baseline.jsonl"
refuse "a limit without likelihoods" 'expected nll of every reply, which perplexity_limit compares' "$step" --perplexity-limit 3
head -n 3 "$step/responses/baseline.jsonl" >"$folder/short" && cp "$folder/short" "$step/responses/baseline.jsonl"
refuse "replies to other prompts" 'expected replies to the prompts of baseline.jsonl' "$step"

[ "$failures" = 0 ] || exit 1
echo "replies judged"
