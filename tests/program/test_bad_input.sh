#!/usr/bin/env bash
# Every kind of bad input ends a run with one clear line (where, expected, got), the right exit code, and no
# half-written result.
#   test_bad_input.sh PROGRAM SOURCE_FOLDER
set -uo pipefail
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # threads that spin where cores are shared take minutes
program=$1 source=$2 status=0 n_cases=0
folder=$(mktemp -d)
mounted=
clean_up() {
    [ -z "$mounted" ] || umount "$mounted"
    rm -rf "$folder"
}
trap clean_up EXIT
cd "$folder" || exit 1
demo=$source/configs/demo

fail() {
    echo "FAILED: $1"
    status=1
}
# expect CODE "text of the message" [arguments of run, after the job]
expect() {
    local code=$1 want=$2 got
    shift 2
    rm -rf out
    "$program" run job.json --out out "$@" >stdout 2>stderr
    got=$?
    n_cases=$((n_cases + 1))
    [ $got = "$code" ] || fail "$want: expected exit code $code: got $got: $(cat stderr)"
    [ "$(grep -c 'gatetape: error: ' stderr)" = 1 ] || fail "$want: expected one line of error: got $(cat stderr)"
    grep 'gatetape: error: ' stderr | grep -qF -- "$want" || fail "expected \"$want\": got \"$(cat stderr)\""
    [ "$(tail -n 1 stderr | grep -c 'gatetape: error: ')" = 1 ] || fail "$want: expected the error as last line: $(cat stderr)"
    [ -s stdout ] && fail "$want: expected nothing on standard output: got $(cat stdout)"
    [ -z "$(find out -name '*.partial-*' 2>/dev/null)" ] || fail "$want: a half-written file is left"
    [ ! -e out/activation/step.json ] || fail "$want: the step counts as finished"
}
job() { # MODEL_FOLDER PROMPT_FILE
    cat >job.json <<JOB
{"schema_version": 1, "models": {"m": {"path": "$1", "chat_template": "phi35moe"}},
 "prompts": {"p": {"path": "$2", "limit": 3}}, "steps": [{"name": "activation", "kind": "activation"}]}
JOB
}
model() {
    rm -rf model
    cp -r "$demo/model" model
    job model "$demo/prompts/rank_ordinary.jsonl"
}
prompts() {
    model
    printf "$1" >prompts.jsonl
    job model prompts.jsonl
}

# ---- jobs ----
model
sed -i 's/"limit"/"limt"/' job.json
expect 2 'job.json: prompts.p.limt: expected a known option: got "limt" (did you mean "limit"?)'
model
expect 2 'prompts.p.limit: expected a number: got "3"' --set 'prompts.p.limit="3"'
sed -i 's/: 3}}/: 3, "limit": 4}}/' job.json
expect 2 'limit' # the same key twice
model
echo x >>job.json
expect 2 'job.json:3:1: expected JSON'
model
sed -i 's/: 3}}/: 1e999}}/' job.json
expect 2 'prompts.p.limit: expected a finite number'
model
sed -i 's/: 3}}/: NaN}}/' job.json
expect 2 'job.json:2'
model
sed -i 's/"phi35moe"/"phi\\u0000"/' job.json
expect 2 'job.json:1'
printf '%0200d' 0 | tr 0 '[' >job.json
expect 2 'job.json:1'
rm job.json
expect 2 'job.json: expected a readable file'

# ---- prompts ----
prompts '{"prompt": "a"}\n{"prompt": "\\u0000"}\n'
expect 2 'prompts.jsonl:2'
prompts '{"prompt": "a"}\n{"prompt": "\xff"}\n'
expect 2 'prompts.jsonl:2'
prompts '{"prompt": "a", "prompt": "b"}\n'
expect 2 'prompts.jsonl:1'
prompts '{"prompt": ""}\n'
expect 2 'prompts.jsonl:1: prompt "0": expected a text (empty: refuse): got an empty prompt'
prompts '{"prompt": "a b c d e f g h", "id": "long"}\n'
expect 2 'prompts.jsonl:1: prompt "long": expected at most 5 tokens (over_long: refuse)' --set prompts.p.max_tokens=5
expect 2 'prompts.jsonl:1: prompt "long": expected a target, since the step is about targets: got none' \
    --set steps.activation.tokens=target
prompts ''
expect 2 'prompts.jsonl: expected at least one prompt: got none'

# ---- judges: refused before the first step ----
judge() { # ANSWERS as JSON
    model
    printf '{"schema_version": 1, "question": "{response}", "answers": {%s}}\n' "$1" >guard.json
    sed -i 's/"kind": "activation"}/"kind": "activation"},\n {"name": "edit", "kind": "intervention", "cells": ["0:1"], "exclude_super": false,\n  "random_sets": 0, "traffic_matched_sets": 0}, {"name": "judged", "kind": "judge", "from": ["edit"]}/' job.json
}
judge '"restricted": "A", "compliant": "A"'
expect 2 'guard.json: answers.compliant: expected tokens that neither are nor begin with those of answers.restricted' \
    --set steps.judged.model=m --set steps.judged.guard=guard.json
[ ! -e out ] || fail "guard: expected nothing to be run"
judge '"restricted": "A", "complaint": "B"'
expect 2 'guard.json: answers.complaint: expected no such key: did you mean compliant' \
    --set steps.judged.model=m --set steps.judged.guard=guard.json
expect 2 'models.m.chat_template: expected a chat template, since the model is asked as a guard: got none' \
    --set steps.judged.model=m --set models.m.chat_template=none
printf 'condition,group,label\n' >people.csv
expect 2 'people.csv' --set steps.judged.labels=people.csv
expect 2 'steps[2].from: expected a step of kind intervention: got "activation" of kind activation' \
    --set steps.judged.from=activation

# ---- models ----
model
expect 2 'models.m.chat_template: expected auto, none or one of ' --set models.m.chat_template=phi
sed -i 's/"mixtral"/"mixtrel"/' model/config.json
expect 2 'mixtrel'
model
sed -i 's/"vocab_size": 768/"vocab_size": 512/' model/config.json
expect 2 'model.embed_tokens.weight' # mis-shaped: [768,96] where config.json says 512
model
sed -i 's/"vocab_size": 768/"vocab_size": 768, "vocab_size": 768/' model/config.json
expect 2 'vocab_size'
model
truncate -s -2 model/model.safetensors
expect 2 'model/model.safetensors'
model
sed -i 's/"num_hidden_layers": 5/"num_hidden_layers": 6/' model/config.json
expect 2 'model.layers.5.' # missing tensors, by name
model
sed -i 's/"num_hidden_layers": 5/"num_hidden_layers": 4/' model/config.json
expect 2 'model.layers.4.' # extra tensors, by name
model
rm model/tokenizer.json
expect 2 'model/tokenizer.json: expected a readable file'
if [ -f "$source/tests/golden/mixtral/config.json" ]; then
    rm -rf model
    cp -r "$source/tests/golden/mixtral" model
    cp "$demo/model/tokenizer.json" "$demo/model/tokenizer_config.json" model/
    job model "$demo/prompts/rank_ordinary.jsonl"
    expect 2 'model/tokenizer.json: expected a tokenizer of at most'
fi

# ---- numbers that are not finite ----
# Overwrites the two bytes of bf16 element 0 of a tensor.
put_bf16() { # NAME LOW_BYTE HIGH_BYTE
    local file=model/model.safetensors header begin
    header=$(od -An -tu8 -N8 $file | tr -d ' ')
    begin=$(head -c $((header + 8)) $file | tail -c "$header" | tr '}' '\n' | grep -F "\"$1\"" |
        sed 's/.*"data_offsets":\[\([0-9]*\),.*/\1/')
    printf "\\x$2\\x$3" | dd of=$file bs=1 seek=$((8 + header + begin)) conv=notrunc status=none
}
model
put_bf16 model.layers.2.block_sparse_moe.experts.3.w2.weight c0 7f
expect 2 'model.layers.2.block_sparse_moe.experts.3.w2.weight'
model
put_bf16 model.layers.2.block_sparse_moe.gate.weight 7f 7f
put_bf16 model.layers.2.post_attention_layernorm.weight 7f 7f
expect 1 'layer 2'
grep -q 'expert ' stderr && grep -q 'token ' stderr || fail "non-finite logits: expected expert and token: got $(cat stderr)"

# ---- places ----
model
rm -rf out
"$program" run job.json --out /proc/gatetape 2>stderr
[ $? = 2 ] && grep -q 'error: /proc/gatetape: expected to make the folder' stderr || fail "unwritable folder: $(cat stderr)"
"$program" run job.json --out model 2>stderr
[ $? = 2 ] && grep -q 'and no manifest.json' stderr || fail "foreign folder: $(cat stderr)"
[ -e model/manifest.json ] && fail "foreign folder: something was written"

mkdir disk
if [ "$(id -u)" = 0 ] && mount -t tmpfs -o size=24k none disk 2>/dev/null; then
    mounted=$folder/disk
    "$program" run job.json --out disk/out 2>stderr
    code=$?
    [ $code = 1 ] && grep -q 'error: disk/out/.*No space left on device' stderr || fail "full disk: exit $code: $(cat stderr)"
    [ "$(grep -c 'gatetape: error: ' stderr)" = 1 ] || fail "full disk: expected one line of error: $(cat stderr)"
    [ -z "$(find disk -name '*.partial-*')" ] || fail "full disk: a half-written file is left"
    mount -o remount,size=8m disk
    "$program" run job.json --out disk/out 2>stderr || fail "full disk: expected to go on: $(cat stderr)"
    "$program" run job.json --out whole 2>stderr
    diff -rq -x manifest.json -x events.jsonl whole disk/out || fail "full disk: the resumed run differs"
    umount disk && mounted=
else
    echo "full disk: skipped, no tmpfs can be mounted here"
fi
[ $status = 0 ] && echo "$n_cases kinds of bad input: one line each"
exit $status
