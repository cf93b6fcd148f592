#!/usr/bin/env bash
# Statistics of 1,000 prompts x 6,144 cells (48 layers x 128 experts) in two groups, with every resample of the defaults,
# from a table of counts: seconds of the whole, and of reading the table alone.   statistics.sh BUILD_FOLDER
set -euo pipefail
build=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
awk 'BEGIN {
    srand(1); print "layer,expert,group,selected,tokens,prompt"
    for (g = 0; g < 2; g++) for (p = 0; p < 500; p++) for (l = 0; l < 48; l++) for (e = 0; e < 128; e++)
        print l "," e "," g "," int(60 * rand() ^ (8 + e % 9 + g)) ",60," p
}' >"$folder/counts.csv"
seconds() {
    local begun
    begun=$(date +%s%N)
    "$build/gatetape" analyze "$folder/counts.csv" --out "$folder/out" "$@"
    echo $((($(date +%s%N) - begun) / 1000000)) | awk '{printf "%.2f", $1 / 1000}'
}
none=(--set bootstraps=0 --set permutations=0 --set splits=0)
echo "case,threads,seconds,limit"
echo "statistics_1000x6144,${OMP_NUM_THREADS:-$(nproc)},$(seconds),10"
echo "statistics_1000x6144 without resamples,${OMP_NUM_THREADS:-$(nproc)},$(seconds "${none[@]}"),-"
