#!/usr/bin/env bash
# Everything that needs a GPU, in one command, from a package folder (tools/package.sh): the parity of every op, the golden
# cases, the demo job beside the CPU's, compute-sanitizer where the node has it. Says "skipped" and why without a GPU.
# Exit status 0: all passed or skipped.
set -u
here=$(dirname "$(readlink -f "$0")")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failures=0
step() {
    local name=$1
    shift
    if "$@" >"$scratch/said" 2>&1 && ! grep -q '\] 0 test(s) run' "$scratch/said"; then
        echo "passed: $name"
    else
        echo "FAILED: $name"
        tail -n 20 "$scratch/said"
        failures=$((failures + 1))
    fi
}
if ! "$here/gatetape" conform "$here/tests/golden/mixtral_window" --device cuda >/dev/null 2>"$scratch/why" &&
    grep -q 'expected a GPU' "$scratch/why"; then
    echo "skipped: $(cat "$scratch/why")"
    step "the CPU on this machine" "$here/gatetape" conform "$here/tests/golden/mixtral" --device cpu
    exit $((failures > 0))
fi
step "the instructions are what the emulator takes them for" "$here/test_conformance_gpu"
step "parity of every op" "$here/tests_gpu" parity
for suite in products gated attention_cores cublas rounds router; do
    step "$suite, beyond the op cases" "$here/tests_gpu" $suite
done
for suite in products gated attention_cores; do
    step "$suite, without Hopper's own instructions" env GATETAPE_HOPPER=0 "$here/tests_gpu" $suite
done
for case in "$here"/tests/golden/*/; do
    [ -f "$case/expected.safetensors" ] || continue
    for compute in f32 bf16; do
        step "conform $(basename "$case") $compute" "$here/gatetape" conform "$case" --device cuda --compute $compute
    done
done
for device in cpu cuda; do
    step "the demo job on $device" "$here/gatetape" run "$here/configs/jobs/demo.json" --out "$scratch/$device" \
        --set "device=$device" --set compute=bf16
done
# ---- training: losses, norms and the adapter beside the CPU's ----
numbers() { od -An -v -tf4 -j $((8 + $(od -An -tu8 -N8 "$1"))) "$1"; }
compare() { # compare RUNS WHAT BOUND: prints how far apart they are
    local what=$2 files=()
    for device in cpu cuda; do
        case $what in
        losses) files+=("$scratch/$1_$device/tune/training.csv") ;;
        updates) files+=("$scratch/$1_$device/tune/updates.csv") ;;
        adapter)
            numbers "$scratch/$1_$device/tune/adapter-dense/adapter_model.safetensors" >"$scratch/$1_$device.numbers"
            files+=("$scratch/$1_$device.numbers")
            ;;
        esac
    done
    step "training in $1, $what beside the CPU's" awk -v bound="$3" -v what="$what" -f "$here/tests/compare_training.awk" "${files[@]}"
    sed 's/^/  /' "$scratch/said"
}
for compute in f32 bf16; do
    for device in cpu cuda; do
        step "the tuning job on $device in $compute" "$here/gatetape" run "$here/configs/jobs/tune-demo.json" \
            --out "$scratch/${compute}_$device" --set "device=$device" --set compute=$compute
        grep '^tune: ' "$scratch/said" | sed 's/^/  /'
    done
done
compare f32 losses 1e-4
compare f32 updates 1e-3
compare f32 adapter 1e-3
compare bf16 losses 0.05

# ---- low-rank updates beside the product that they update: seconds, GFLOP, GB, TFLOP/s, GB/s ----
step "the bench of low-rank updates" bash -c 'for shape in mixtral qwen3; do
    for case in moe_gate_up lora_r16 lora_r64 lora_all_r16 lora_bwd_r16 lora_bwd_r64; do echo "$shape/$case/16384/0"; done
    echo "$shape/adamw/1024"
done | "$0" bench ops --device cuda --compute bf16 --cases -' "$here/gatetape"
sed 's/^/  /' "$scratch/said"

# sanitize TOOL WHAT PROGRAM...: a verdict within 100 s, or a failure that says it was the clock
sanitize() {
    local tool=$1 what=$2 began=$SECONDS
    shift 2
    step "compute-sanitizer $tool, $what" timeout 100 compute-sanitizer --tool "$tool" --error-exitcode 1 \
        --target-processes all "$@"
    echo "  $((SECONDS - began)) s of 100"
}
if command -v compute-sanitizer >/dev/null; then
    window="$here/tests/golden/mixtral_window"
    for tool in memcheck racecheck; do # --once: a seventh of the launches
        for compute in f32 bf16; do
            sanitize $tool "the engine in $compute" "$here/gatetape" conform "$window" --once --device cuda --compute $compute
        done
        sanitize $tool "attention" "$here/tests_gpu" attention_cores 'head *, GQA ?'
        sanitize $tool "attention over a cache" "$here/tests_gpu" attention_cores 'head 128, cache, window'
        sanitize $tool "decode attention" "$here/tests_gpu" attention_cores 'head ???, decoding, window'
        sanitize $tool "low-rank updates" "$here/tests_gpu" parity 'lora*' 7
        sanitize $tool "AdamW" "$here/tests_gpu" parity 'adamw' 130
    done
else
    echo "skipped: compute-sanitizer (not on this node)"
fi
[ "$failures" = 0 ] && echo "all passed"
exit $((failures > 0))
