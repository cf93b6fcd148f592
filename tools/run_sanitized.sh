#!/usr/bin/env bash
# Builds everything with the address and undefined-behaviour sanitizers and runs the whole suite there.
#   run_sanitized.sh BUILD_FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
cmake -S . -B "$1" -DCMAKE_BUILD_TYPE=Debug -DGATETAPE_SANITIZE=ON >/dev/null
cmake --build "$1" -j "$(nproc)" 2>&1 | grep -vE '^\[|^Scanning|^Consolidate' || true
cmake --build "$1" >/dev/null
export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1
ctest --test-dir "$1" --output-on-failure -j "$(nproc)"
