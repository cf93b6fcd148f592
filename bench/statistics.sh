#!/usr/bin/env bash
# Statistics of 1,000 prompts x 6,144 cells (48 layers x 128 experts) in two groups, with every resample of the defaults,
# from a table of counts: the whole, and without resamples (reading the table).   statistics.sh BUILD_FOLDER
set -euo pipefail
build=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
awk 'BEGIN {
    srand(1); print "layer,expert,group,selected,tokens,prompt"
    for (g = 0; g < 2; g++) for (p = 0; p < 500; p++) for (l = 0; l < 48; l++) for (e = 0; e < 128; e++)
        print l "," e "," g "," int(60 * rand() ^ (8 + e % 9 + g)) ",60," p
}' >"$folder/counts.csv"
# measure CASE LIMIT [arguments]: wall seconds, and seconds of all threads' processor time
measure() {
    local name=$1 limit=$2 taken
    shift 2
    TIMEFORMAT='%R %U %S'
    taken=$( { time "$build/gatetape" analyze "$folder/counts.csv" --out "$folder/out" "$@" 2>"$folder/said"; } 2>&1) ||
        { cat "$folder/said" >&2; return 1; }
    awk -v name="$name" -v limit="$limit" -v threads="${OMP_NUM_THREADS:-$(nproc)}" \
        '{printf "%s,%s,%.2f,%.2f,%s\n", name, threads, $1, $2 + $3, limit}' <<<"$taken"
}
echo "case,threads,seconds,cpu_seconds,limit"
measure statistics_1000x6144 10
measure statistics_1000x6144_without_resamples - --set bootstraps=0 --set permutations=0 --set splits=0
