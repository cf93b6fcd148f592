#!/usr/bin/env bash
# Every golden case passes through `gatetape conform`, and a fault planted in a copy of one, in what is expected or in the
# weights, makes it fail.
set -u
program=$1 source=$2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failures=0
fail() {
    printf 'FAILED: %s\n' "$1"
    failures=$((failures + 1))
}

for case in "$source"/tests/golden/*/; do
    [ -f "$case/expected.safetensors" ] || continue
    "$program" conform "$case" > "$scratch/said" 2>&1 || {
        fail "conform $case"
        cat "$scratch/said"
    }
    tail -n 1 "$scratch/said" | sed "s|^|$(basename "$case"): |"
done

# flip FILE BYTES_FROM_THE_END: inverts the highest bit but one of the exponent of a float that ends there
flip() {
    local size byte at
    size=$(stat -c %s "$1")
    at=$((size - $2))
    byte=$(od -An -tu1 -j "$at" -N 1 "$1")
    # shellcheck disable=SC2059 # the format is the byte
    printf "$(printf '\\x%02x' $((byte ^ 0x01)))" | dd of="$1" bs=1 seek="$at" conv=notrunc status=none
}

expect_failure() {
    "$program" conform "$1" > "$scratch/said" 2>&1
    local code=$?
    [ "$code" = 1 ] || fail "$2: expected exit code 1: got $code"
    grep -q "$3" "$scratch/said" || fail "$2: expected \"$3\""
}

small="$source/tests/golden/mixtral_window"
cp -r "$small" "$scratch/expected" && chmod -R u+w "$scratch/expected"
flip "$scratch/expected/expected.safetensors" 1
expect_failure "$scratch/expected" "a fault in the last expected tensor" 'topk_weights .*FAILED'

cp -r "$small" "$scratch/weights" && chmod -R u+w "$scratch/weights"
flip "$scratch/weights/model.safetensors" 1
expect_failure "$scratch/weights" "a fault in the weights" 'logits .*FAILED'

cp -r "$small" "$scratch/cut" && chmod -R u+w "$scratch/cut"
truncate -s -1 "$scratch/cut/expected.safetensors"
"$program" conform "$scratch/cut" > "$scratch/said" 2>&1
[ $? = 2 ] || fail "a truncated case: expected exit code 2"
grep -q 'error: .*cut/expected.safetensors: ' "$scratch/said" || fail "a truncated case: the message names the file"

[ "$failures" = 0 ] || exit 1
echo "all golden cases pass, planted faults are found"
