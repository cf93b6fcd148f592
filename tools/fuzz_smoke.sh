#!/usr/bin/env bash
# Builds the libFuzzer harnesses and runs each for a while from its seeds: a smoke test, not a campaign.
#   fuzz_smoke.sh BUILD_FOLDER [SECONDS_EACH]
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1 seconds=${2:-30}
cmake -S . -B "$build" -DCMAKE_C_COMPILER=clang-14 -DGATETAPE_FUZZ=ON >/dev/null
for source in tests/fuzz/fuzz_*.c; do
    name=$(basename "$source" .c)
    cmake --build "$build" -j "$(nproc)" --target "$name" >/dev/null
done
run() {
    local name=$1 corpus
    corpus=$(mktemp -d)
    [ -d "tests/fuzz/seeds/$name" ] && cp "tests/fuzz/seeds/$name"/* "$corpus"
    "$build/$name" "$corpus" -max_total_time="$seconds" -rss_limit_mb=1024 -timeout=10 -max_len=65536 -artifact_prefix="$build/" \
        >"$build/$name.log" 2>&1 || { tail -40 "$build/$name.log"; echo "$name: failed"; rm -rf "$corpus"; return 1; }
    rm -rf "$corpus"
    echo "$name: $(grep -oE '^#[0-9]+' "$build/$name.log" | tail -1 | tr -d '#') runs, nothing found"
}
export -f run
export build seconds
printf '%s\n' tests/fuzz/fuzz_*.c | xargs -n1 -I{} basename {} .c | xargs -P "$(nproc)" -n1 bash -c 'run "$0"'
