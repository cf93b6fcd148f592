#!/usr/bin/env bash
# The whole program on the emulated device: golden cases in f32 and bf16, the tensor-core kernels really launched, the demo
# job beside the CPU's, and what the n-th failing allocation, copy or launch leads to.   test_emulated.sh PROGRAM SOURCE
set -u
program=$1 source=$2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failures=0
fail() {
    printf 'FAILED: %s\n' "$1"
    failures=$((failures + 1))
}

# ---- golden cases: f32 beside the reference, bf16 beside the CPU's bf16 ----
for case in "$source"/tests/golden/*/; do
    [ -f "$case/expected.safetensors" ] || continue
    name=$(basename "$case")
    "$program" conform "$case" --device cuda --compute f32 >"$scratch/said" 2>&1 || {
        fail "conform $name in f32"
        cat "$scratch/said"
    }
    echo "$name f32: $(tail -n 1 "$scratch/said")"
    mkdir -p "$scratch/$name"
    "$program" conform "$case" --device cpu --compute bf16 --out "$scratch/$name" >/dev/null 2>&1
    mv "$scratch/$name/actual.safetensors" "$scratch/$name/expected.safetensors"
    if [ "$name" = mixtral ]; then # training too, where it is cheapest
        cp "$case/lora.json" "$scratch/$name/"
        mv "$scratch/$name/actual_lora.safetensors" "$scratch/$name/expected_lora.safetensors"
        rm -r "$scratch/$name"/adapter-* "$scratch/$name/merged"
    fi
    "$program" conform "$scratch/$name" --model "$case" --device cuda --compute bf16 >"$scratch/said" 2>&1 || {
        fail "conform $name in bf16"
        cat "$scratch/said"
    }
    echo "$name bf16: $(tail -n 1 "$scratch/said")"
    grep '^launched: ' "$scratch/said" >>"$scratch/launched"
done
for kernel in multiply_bf16 attend_mma decode gradient_mma; do
    grep -q "^launched: $kernel " "$scratch/launched" || fail "$kernel was not launched by any bf16 case"
done

# ---- the demo job on eight prompts ----
job() {
    "$program" run "$source/configs/jobs/demo.json" --out "$scratch/$1" --set "device=$1" --set compute=bf16 \
        --set prompts.ordinary.limit=4 --set prompts.restricted.limit=4 >"$scratch/said" 2>&1 || {
        fail "the demo job on $1"
        cat "$scratch/said"
    }
}
job cpu
job cuda
for step in activation gradient gradient_reply; do
    awk -F, -v step="$step" '
        FNR == 1 { file++; next }
        { cell = $1 " layer " $2 " expert " $3 }
        file == 1 { cpu[cell] = $4; if ($5 <= 20) top[cell] = 1; if ($4 > most[$1]) most[$1] = $4; next }
        { off = ($4 - cpu[cell]) / most[$1]; if (off < 0) off = -off; if (off > worst) worst = off; n++ }
        $5 <= 20 && !(cell in top) { print "not among the first 20 of the CPU: " cell; bad = 1 }
        END { printf "%s: %d cells, largest difference %.1e of the largest score\n", step, n, worst
              exit bad || n == 0 || worst > 0.05 }' \
        "$scratch/cpu/$step/scores.csv" "$scratch/cuda/$step/scores.csv" || fail "the demo job, step $step"
done

# ---- an intervention: the same conditions, and in f32 the same replies as the CPU's ----
cat >"$scratch/edit.json" <<JOB
{"schema_version": 1, "compute": "f32", "models": {"demo": {"path": "$source/configs/demo/model", "chat_template": "phi35moe"}},
 "prompts": {"a": {"path": "$source/configs/demo/prompts/rank_ordinary.jsonl", "limit": 2},
             "b": {"path": "$source/configs/demo/prompts/rank_restricted.jsonl", "limit": 2},
             "t": {"path": "$source/configs/demo/prompts/test_restricted.jsonl", "limit": 2}},
 "steps": [{"name": "act", "kind": "activation", "groups": ["a", "b"]},
           {"name": "edit", "kind": "intervention", "from": ["act"], "groups": ["t"], "rank_groups": ["b", "a"], "top": [3],
            "random_sets": 1, "layer_matched_sets": 0, "traffic_matched_sets": 0, "max_new_tokens": 6},
           {"name": "later", "kind": "intervention", "from": ["act"], "groups": ["t"], "rank_groups": ["b", "a"], "top": [3],
            "mode": "zero_renormalize", "applies_to": "generated", "random_sets": 1, "layer_matched_sets": 0,
            "traffic_matched_sets": 0, "max_new_tokens": 6}]}
JOB
for device in cpu cuda; do
    "$program" run "$scratch/edit.json" --out "$scratch/edit_$device" --set "device=$device" >"$scratch/said" 2>&1 || {
        fail "the intervention job on $device"
        cat "$scratch/said"
    }
done
replies() { sed 's/, "nll": [^,}]*//' "$scratch/$1"/responses/*.jsonl; }
likelihoods() { grep -ho '"nll": [^,}]*' "$scratch/$1"/responses/*.jsonl | cut -d ' ' -f 2; }
for step in edit later; do
    for file in conditions.csv cells.csv; do
        diff "$scratch/edit_cpu/$step/$file" "$scratch/edit_cuda/$step/$file" >"$scratch/said" ||
            fail "$step/$file of the intervention job differs from the CPU's: $(head -n 3 "$scratch/said")"
    done
    diff <(cut -d, -f1-7 "$scratch/edit_cpu/$step/labels.csv") <(cut -d, -f1-7 "$scratch/edit_cuda/$step/labels.csv") \
        >"$scratch/said" || fail "$step: labels differ from the CPU's: $(head -n 3 "$scratch/said")"
    diff <(replies "edit_cpu/$step") <(replies "edit_cuda/$step") >"$scratch/said" ||
        fail "$step: replies differ from the CPU's: $(head -n 3 "$scratch/said")"
    paste <(likelihoods "edit_cpu/$step") <(likelihoods "edit_cuda/$step") |
        awk '{ off = $1 - $2; if (off < 0) off = -off; if (NF != 2 || off > 1e-5) bad = 1 } END { exit bad || NR == 0 }' ||
        fail "$step: likelihoods of replies differ from the CPU's"
done

# ---- a contrast: in f32 the curves and the gradient ranking of the CPU ----
cat >"$scratch/contrast.json" <<JOB
{"schema_version": 1, "compute": "f32", "models": {"demo": {"path": "$source/configs/demo/model", "chat_template": "phi35moe"}},
 "prompts": {"r": {"path": "$source/configs/demo/prompts/contrast_restricted.jsonl", "limit": 2},
             "o": {"path": "$source/configs/demo/prompts/contrast_ordinary.jsonl", "limit": 2}},
 "steps": [{"name": "reply", "kind": "contrast", "groups": ["r"], "bootstraps": 0, "select": 5},
           {"name": "intent", "kind": "contrast", "contrast": "matched", "groups": ["r", "o"], "bootstraps": 0}]}
JOB
for device in cpu cuda; do
    "$program" run "$scratch/contrast.json" --out "$scratch/contrast_$device" --set "device=$device" >"$scratch/said" 2>&1 || {
        fail "the contrast job on $device"
        cat "$scratch/said"
    }
done
cut -d, -f1-3 "$scratch/contrast_cpu/reply/selection_gradient.csv" |
    diff - <(cut -d, -f1-3 "$scratch/contrast_cuda/reply/selection_gradient.csv") >"$scratch/said" ||
    fail "the gradient ranking differs from the CPU's: $(head -n 3 "$scratch/said")"
for table in reply/overall.csv intent/overall.csv reply/ranking.csv; do
    awk -F, '
        FNR == 1 { file++; next }
        { key = $1 " " $3 " " $4; if (table ~ /overall/) key = $1; value = table ~ /overall/ ? $3 : $5 }
        file == 1 { cpu[key] = value; next }
        { off = value - cpu[key]; if (off < 0) off = -off; if (!(key in cpu) || off > 2e-5) { print key, cpu[key], value; bad = 1 }; n++ }
        END { exit bad || n == 0 }' table=$table "$scratch/contrast_cpu/$table" "$scratch/contrast_cuda/$table" ||
        fail "$table of the contrast job differs from the CPU's"
done

# ---- training: losses, norms and the adapter of the CPU ----
cat >"$scratch/tune.json" <<JOB
{"schema_version": 1, "compute": "f32", "models": {"demo": {"path": "$source/configs/demo/model", "chat_template": "phi35moe"}},
 "prompts": {"t": {"path": "$source/configs/demo/prompts/rank_restricted.jsonl", "limit": 6, "use": "tuning"}},
 "steps": [{"name": "tune", "kind": "tune", "groups": ["t"], "cells": ["2:1", "3:4"], "rank": 4, "alpha": 8, "examples": 3,
            "learning_rate": 0.001, "warmup": 1, "epochs": 2}]}
JOB
for device in cpu cuda; do
    "$program" run "$scratch/tune.json" --out "$scratch/tune_$device" --set "device=$device" >"$scratch/said" 2>&1 || {
        fail "the tuning job on $device"
        cat "$scratch/said"
    }
    trained="$scratch/tune_$device/tune/adapter-dense/adapter_model.safetensors"
    od -An -v -tf4 -j $((8 + $(od -An -tu8 -N8 "$trained"))) "$trained" >"$scratch/tune_$device/tune/numbers"
done
for pair in losses:training.csv updates:updates.csv adapter:numbers; do
    awk -v bound=1e-4 -v what="${pair%:*}" -f "$source/tools/compare_training.awk" \
        "$scratch/tune_cpu/tune/${pair#*:}" "$scratch/tune_cuda/tune/${pair#*:}" || fail "training: ${pair%:*} differ from the CPU's"
done

# ---- faults: one line, exit code 3, nothing half written ----
for fault in alloc:1 alloc:3 copy:2 launch:1 launch:40; do
    GATETAPE_EMULATOR_FAIL=$fault "$program" conform "$source/tests/golden/mixtral_window" --device cuda \
        >"$scratch/out" 2>"$scratch/err"
    code=$?
    [ "$code" = 3 ] || fail "$fault: expected exit code 3: got $code"
    [ "$(wc -l <"$scratch/err")" = 1 ] || fail "$fault: expected one line: got $(cat "$scratch/err")"
done
GATETAPE_SYNC=1 GATETAPE_EMULATOR_FAIL=launch:40 "$program" conform "$source/tests/golden/mixtral_window" --device cuda \
    >/dev/null 2>"$scratch/err"
grep -qE 'error: [a-z_]+: device cuda: (f32|bf16)\[' "$scratch/err" || fail "a failed launch names op and shapes: got $(cat "$scratch/err")"
GATETAPE_EMULATOR_NO_DEVICE=1 "$program" conform "$source/tests/golden/mixtral_window" --device cuda >/dev/null 2>"$scratch/err"
[ $? = 3 ] || fail "no device: expected exit code 3"
grep -q 'expected a GPU' "$scratch/err" || fail "no device: got $(cat "$scratch/err")"

[ "$failures" = 0 ] || exit 1
echo "the emulated device agrees with the reference and with the CPU"
