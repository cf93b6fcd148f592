#!/usr/bin/env bash
# What ptxas makes of the kernels: registers beside their budget, threads, static shared memory, spills and stack of each,
# for sm_80 and sm_90a. Exit status 1 on a spill, a stack frame, a warning (C75xx remarks too: serialised wgmma, ignored
# setmaxnreg) or more registers than the budget.
#   kernel_resources.sh [FILE.cu...]      all of kernels/cuda/ by default, and the test of hopper.cuh; JOBS at a time
# The budget of a kernel: 255, or what an SM has for each thread of the blocks that its launch bounds ask for, 65536 /
# (threads * blocks), in steps of 8.
set -uo pipefail
cd "$(dirname "$0")/.."
command -v nvcc >/dev/null || { echo "skipped: no nvcc"; exit 0; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export scratch
[ $# -gt 0 ] || set -- kernels/cuda/*.cu tests/emulator/hopper_product.cu

compile() { # FILE ARCHITECTURE
    local out
    out=$scratch/$(basename "$1" .cu).$2
    mkdir "$out"
    nvcc -std=c++20 -O3 -fmad=false -I . -cubin --keep --keep-dir "$out" -o "$out/cubin" \
        -Xptxas=-v,-warn-spills,-warn-lmem-usage -gencode="arch=compute_${2#sm_},code=$2" "$1" >"$out/said" 2>&1 ||
        echo "$1: $2: does not compile" >>"$out/said"
}
export -f compile
for file in "$@"; do printf '%s sm_80\n%s sm_90a\n' "$file" "$file"; done |
    xargs -P "${JOBS:-2}" -L 1 bash -c 'compile "$0" "$1"'

status=0
for file in "$@"; do
    for architecture in sm_80 sm_90a; do
        out=$scratch/$(basename "$file" .cu).$architecture
        cat "$out"/*.ptx "$out/said" 2>/dev/null | awk -v file="$(basename "$file")" -v architecture=$architecture '
            function budget(kernel,   most) {
                most = bounds[kernel] ? int(65536 / bounds[kernel] / (blocks[kernel] ? blocks[kernel] : 1) / 8) * 8 : 255
                return most < 255 ? most : 255
            }
            /\.entry / { kernel = $0; sub(/.*\.entry /, "", kernel); sub(/\(.*/, "", kernel) }
            /^\.maxntid/ { bounds[kernel] = $2 + 0 }
            /^\.minnctapersm/ { blocks[kernel] = $2 + 0 }
            /^ptxas info *: Function properties for / { kernel = $NF }
            /bytes stack frame/ { stack = $1; spills = $5 + $9 }
            /^ptxas info *: Used / {
                shared = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART) + 0 : 0
                print file, architecture, kernel, bounds[kernel] + 0, $5, budget(kernel), shared, spills, stack
                if (spills || stack || $5 > budget(kernel)) bad = 1
            }
            /(warning|error) *[:#]|\(C75|does not compile/ { print | "c++filt >&2"; bad = 1 }
            END { exit bad }' >>"$scratch/table" || status=1
    done
done
{
    echo "file architecture threads registers budget shared spills stack kernel"
    c++filt -p <"$scratch/table" | awk '{
        kernel = $3; n = NF
        for (i = 4; i <= n - 6; i++) kernel = kernel " " $i
        print $1, $2, $(n - 5), $(n - 4), $(n - 3), $(n - 2), $(n - 1), $n, kernel }'
} | awk '{
    name = $9; for (i = 10; i <= NF; i++) name = name " " $i
    printf "%-22s %-12s %7s %9s %6s %6s %6s %5s  %s\n", $1, $2, $3, $4, $5, $6, $7, $8, name }'
[ $status = 0 ] && echo "$(wc -l <"$scratch/table") kernels: no spills, no stack, no warnings, registers within their budget" ||
    echo "a kernel spills, has a stack frame or a warning, or takes more registers than its budget"
exit $status
