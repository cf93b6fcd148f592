#!/usr/bin/env bash
# The program from outside: help, version, exit codes, which stream says what, and that no control character of an
# argument or a file reaches the terminal.
set -u
program=$1 source=$2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" || exit 1
failures=0
fail() {
    printf 'FAILED: %s\n' "$1"
    failures=$((failures + 1))
}

# expect CODE WORDS...: runs the program; its output is in `out` and `err`.
expect() {
    local code=$1 got
    shift
    "$program" "$@" > out 2> err < /dev/null
    got=$?
    [ "$got" = "$code" ] || fail "gatetape $*: expected exit code $code: got $got: $(head -c 300 err)"
}
says() { grep -qF -- "$2" "$1" || fail "expected \"$2\" in: $(head -c 400 "$1")"; }
silent() { [ -s "$1" ] && fail "expected nothing in $1: got: $(head -c 400 "$1")"; }
# An error is one line on standard error, and nothing is on standard output.
one_error() {
    silent out
    [ "$(wc -l < err)" = 1 ] || fail "expected one line: got: $(cat err)"
    says err "gatetape: error: "
    says err "$1"
}

# ---- help and version ----
expect 0 --help
silent err
for verb in run analyze report diff inspect generate tokenize conform options definitions; do says out "  $verb"; done
expect 0 --version
grep -qE '^gatetape [0-9]+\.[0-9]+\.[0-9]+( \([0-9a-f]{12}\))?$' out || fail "--version: got $(cat out)"
for verb in run analyze report diff inspect generate tokenize conform options definitions; do
    expect 0 "$verb" --help
    silent err
    says out "usage: gatetape $verb"
done
expect 2
silent out
says err "usage: gatetape VERB"

# ---- diff: 0 the same, 1 different ----
for run in one other; do
    mkdir $run && printf '{"seed": 1, "steps": [{"name": "s", "kind": "report"}]}' > $run/job.json
done
expect 0 diff one other
silent err
says out 'same: 0 files'
sed -i 's/: 1/: 2/' other/job.json
expect 1 diff one other
silent err
says out 'option seed: 1 against 2'

# ---- wrong words ----
expect 2 reprot
one_error 'did you mean report?'
expect 2 run
one_error 'run: expected JOB: got nothing'
expect 2 run job.json --dry-ron
one_error 'did you mean --dry-run?'
expect 2 run nowhere.json
one_error 'nowhere.json'
expect 2 conform nowhere
one_error 'nowhere/expected.safetensors'
expect 2 diff nowhere nowhere
one_error 'nowhere: expected a run folder'
expect 2 diff nowhere
one_error 'diff: expected RUN RUN: got one'
expect 2 inspect nowhere
one_error 'nowhere'
expect 3 bench counters
one_error 'make emulated'
expect 2 conform nowhere --device gpu
one_error '--device: expected auto, cpu or cuda: got "gpu"'
expect 2 generate nowhere
one_error 'expected either --prompt or --prompts: got neither'
expect 2 generate nowhere --prompt x --top-p 2
one_error '--top-p: expected a number'
expect 2 "$(printf 'r\033[2J\302\233n')"
grep -q "$(printf '\033')" err && fail "an escape character reached standard error"
GATETAPE_ISA=sparc "$program" conform "$source/tests/golden/mixtral_window" > out 2> err
[ $? = 3 ] || fail "an instruction set that is not there: expected exit code 3"
one_error 'GATETAPE_ISA'

# ---- inspect, options ----
expect 0 inspect "$source/configs/demo/model"
says out "top 2 of 8"
says out "BF16"
expect 0 options
says out "over_long"

# ---- analyze, definitions ----
expect 0 definitions
says out "groups.NAME.k80 (cells)"
expect 0 analyze "$source/tests/data/statistics/counts.csv" --out analyzed
silent out
says analyzed/statistics.json '"bootstrap": null, "bootstrap_reason": "the table has no column prompt"'
says analyzed/README.txt "groups.NAME.k80 (cells)"
expect 0 analyze "$source/tests/data/statistics/prompts.csv" --out analyzed --set bootstraps=50 --set top_sets=2,4 --seed 3
says analyzed/statistics.json '"top_sets": [2, 4], "bootstraps": 50'
grep -qw nan analyzed/statistics.json && fail "analyze: a number that is none"
expect 2 analyze "$source/tests/data/statistics/counts.csv"
one_error '--out: expected a folder: got none'
expect 2 analyze nowhere.csv --out none
one_error 'nowhere.csv'
printf 'layer,expert,group,selected,tokens\n0,0,a,\033[2J,10\n' > evil.csv
expect 2 analyze evil.csv --out none
one_error 'evil.csv:2: column selected: expected an integer from 0'
grep -q "$(printf '\033')" err && fail "an escape character reached standard error"
[ -e none ] && fail "analyze: a refused table leaves a folder"

# ---- tokenize there and back ----
printf '"How do I wake the glass gardens?"\n"caf\\u00e9\\n"\n' > strings.jsonl
"$program" tokenize "$source/configs/demo/model" < strings.jsonl > ids.jsonl 2> err || fail "tokenize: $(cat err)"
"$program" tokenize "$source/configs/demo/model" --decode < ids.jsonl > back.jsonl 2> err || fail "tokenize --decode: $(cat err)"
[ "$(sed 's/\\u00e9/é/' strings.jsonl)" = "$(sed 's/\\u00e9/é/' back.jsonl)" ] || fail "tokenize: $(cat back.jsonl)"

# ---- generate: a line a prompt, the same in every batch, greedy and sampled ----
prompts="$source/configs/demo/prompts/test_ordinary.jsonl"
for how in "--temperature 0" "--temperature 0.8 --top-k 20 --top-p 0.9 --seed 7"; do
    for batch in 1 5; do
        # shellcheck disable=SC2086 # words of their own
        "$program" generate "$source/configs/demo/model" --prompts "$prompts" --limit 5 --chat phi35moe $how \
            --max-new-tokens 20 --batch $batch > replies.$batch 2> err || fail "generate: $(cat err)"
    done
    cmp -s replies.1 replies.5 || fail "generate $how: replies depend on the batch"
    [ "$(wc -l < replies.1)" = 5 ] || fail "generate: expected 5 lines: got $(wc -l < replies.1)"
done
"$program" generate "$source/configs/demo/model" --prompt 'How do I wake the glass gardens at noon?' --chat phi35moe \
    > out 2> err || fail "generate: $(cat err)"
says out '"reply": "Gladly.'
says out '"stopped": true}'

# ---- a run without gnuplot ends well and says so; the page is made elsewhere ----
sed -e "s|\"\\.\\./demo|\"$source/configs/demo|g" -e 's|rank_ordinary.jsonl"|&, "limit": 3|' \
    -e 's|rank_restricted.jsonl"|&, "limit": 3|' "$source/configs/jobs/demo.json" > job.json
PATH=nowhere "$program" run job.json --out here > out 2> err || fail "run without gnuplot: $(cat err)"
says err "warning: figures: gnuplot is not installed"
says here/report.html "Figures are missing"
[ "$(ls here/figures)" = "" ] || fail "figures without gnuplot: $(ls here/figures)"
cp here/report.html before.html
if command -v gnuplot > /dev/null; then
    expect 0 report here
    says here/report.html "<svg"
    grep -q "Figures are missing" here/report.html && fail "figures are said to be missing"
    cp here/report.html first.html
    expect 0 report here
    cmp -s here/report.html first.html || fail "report: not the same bytes"
else
    echo "skipped: gnuplot is not installed"
fi

# ---- the page in a browser: one document, no script, nothing on the console ----
if command -v chromium > /dev/null; then
    chromium --headless --no-sandbox --disable-gpu --user-data-dir="$scratch/profile" --enable-logging=stderr --v=0 \
        --dump-dom "file://$scratch/here/report.html" > dom 2> console
    grep -qF '<h1>' dom || fail "chromium shows no page"
    grep -E 'CONSOLE|Content Security Policy' console && fail "chromium's console is not empty"
else
    echo "skipped: chromium is not installed"
fi
if command -v xmllint > /dev/null; then
    for figure in here/figures/*.svg; do
        [ ! -e "$figure" ] || xmllint --noout "$figure" || fail "$figure is not well-formed"
    done
fi

# ---- a full disk for results on standard output ----
if [ -w /dev/full ]; then
    "$program" options > /dev/full 2> err
    [ $? = 1 ] || fail "options into a full disk: expected exit code 1"
    says err "standard output"
fi

[ "$failures" = 0 ] || exit 1
echo "the program answers as it should"
