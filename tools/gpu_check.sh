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
    if "$@" >"$scratch/said" 2>&1; then
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
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        step "compute-sanitizer $tool" compute-sanitizer --tool $tool --error-exitcode 1 --target-processes all \
            "$here/gatetape" conform "$here/tests/golden/mixtral_window" --device cuda
    done
else
    echo "skipped: compute-sanitizer (not on this node)"
fi
[ "$failures" = 0 ] && echo "all passed"
exit $((failures > 0))
