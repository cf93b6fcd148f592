#!/usr/bin/env bash
# What the GPU is really given: for each kernel of the built library, for sm_80 and sm_90a, its instructions, the share of
# tensor-core instructions (HMMA) in its main loop, and its accesses of local memory. Exit status 1 where a product's loop
# has a smaller share than its bound, a product has no bound, or any kernel touches local memory.
#   sass.sh [LIBRARY] [OUT.csv]       build/libgatetape_cuda.a by default
# Needs cuobjdump and nvdisasm as new as the nvcc that built the library: from CUOBJDUMP and NVDISASM, PATH,
# CUDA_HOME/bin, or python3's packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm. Says "skipped" without.
set -uo pipefail
cd "$(dirname "$0")/.."
library=$(readlink -f "${1:-build/libgatetape_cuda.a}") out=${2:-}

# Least share of a main loop. The goal is 0.45: an mma m16n8k16 takes its tensor core 4 cycles (sm_90; 8 on sm_80), in which
# the scheduler beside it issues as many instructions, so that 0.25 would do if nothing ever waited. The shapes for few
# rows (gemm_mma.cu: medium, 64 x 128, skinny, 32 x 64, and thin, 32 x 32) multiply less for what they
# read. Weights are their limit: of 96 rows a byte of them is worth 96 flops, where an H100 has 266 for each byte from
# memory (798e12 / 3.0e12); 0.16 of the instructions still feed the tensor cores at almost two thirds of their rate.
# Attention has no bound: masks, copies and the softmax stand in its loop, whether or not they run.
bounds() {
    cat <<'BOUNDS'
multiply_bf16<Shape<2, 4, 4, 8, 0.45 large
multiply_bf16<Shape<1, 4, 4, 4, 0.34 medium
multiply_bf16<Shape<1, 4, 2, 2, 0.17 skinny
multiply_bf16<Shape<1, 2, 2, 2, 0.16 thin
BOUNDS
}

find_tool() { # NAME, what the environment names
    local folder
    if [ -n "$2" ]; then
        [ -x "$2" ] || { echo "$1: expected a program: got $2" >&2; return 2; }
        echo "$2"
        return
    fi
    command -v "$1" && return
    for folder in "${CUDA_HOME:-/usr/local/cuda}/bin" \
        $(python3 -c 'import site; print(*(s + "/nvidia/cu13/bin" for s in site.getsitepackages()))' 2>/dev/null); do
        [ -x "$folder/$1" ] && echo "$folder/$1" && return
    done
    return 1
}
for tool in cuobjdump nvdisasm; do
    given=${tool^^}
    path=$(find_tool $tool "${!given:-}")
    case $? in
    0) declare "$tool=$path" ;;
    1) echo "skipped: $tool not found (pip install nvidia-cuda-$tool)" && exit 0 ;;
    *) exit 1 ;;
    esac
done
[ -f "$library" ] || { echo "skipped: no $library, which a build with nvcc makes"; exit 0; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
(cd "$scratch" && ar x "$library" && for object in *.o; do "$cuobjdump" -xelf all "$object"; done) >"$scratch/said" 2>&1
for cubin in "$scratch"/*.cubin; do
    [ -f "$cubin" ] || { cat "$scratch/said"; echo "$library: expected device code: got none"; exit 1; }
    name=$(basename "$cubin" .cubin)
    "$nvdisasm" -c "$cubin" >"$scratch/listing" 2>"$scratch/said" ||
        { cat "$scratch/said"; echo "$name: nvdisasm cannot read it"; exit 1; }
    awk -v file="${name%.sm_*}.cu" -v architecture="sm_${name##*.sm_}" -f tools/sass.awk "$scratch/listing" |
        awk -v file="${name%.sm_*}.cu" -v architecture="sm_${name##*.sm_}" '{ print file, architecture, $0 }'
done | c++filt -p >"$scratch/kernels"

bounds >"$scratch/bounds"
awk -v out="$scratch/csv" '
    FNR == NR {
        n_bounds++
        shape[n_bounds] = $NF
        least[n_bounds] = $(NF - 1)
        $NF = $(NF - 1) = ""
        sub(/ +$/, "")
        begins[n_bounds] = $0
        next
    }
    FNR == 1 {
        print "file,architecture,instructions,mma,loop_instructions,loop_mma,loop_share,least_share,local_accesses,kernel" >out
        printf "%-22s %-7s %12s %5s %5s %5s %6s %6s %6s  %s\n", "file", "", "instructions", "mma", "loop", "mma", "share",
            "least", "local", "kernel"
    }
    {
        file = $1; architecture = $2; local = $7
        name = $8
        for (i = 9; i <= NF; i++) name = name " " $i
        share = $5 ? sprintf("%.3f", $6 / $5) : "-"
        bound = "-"
        for (i = 1; i <= n_bounds; i++)
            if (index(name, begins[i]) == 1) {
                bound = least[i]
                found[i, architecture]++
            }
        architectures[architecture]
        if (bound != "-" && share + 0 < bound) {
            broken[++n_broken] = architecture ": " name ": " share " of the main loop are mma, bound " bound
        }
        if (bound == "-" && $4 && name ~ /^multiply/)
            broken[++n_broken] = architecture ": " name ": a product without a bound in tools/sass.sh"
        if (local) broken[++n_broken] = architecture ": " name ": " local " accesses of local memory"
        if ($4) printf "%-22s %-7s %12d %5d %5d %5d %6s %6s %6d  %s\n", file, architecture, $3, $4, $5, $6, share, bound,
            local, name
        printf "%s,%s,%d,%d,%d,%d,%s,%s,%d,\"%s\"\n", file, architecture, $3, $4, $5, $6, share, bound, local, name >out
        n_kernels++
    }
    END {
        for (a in architectures)
            for (i = 1; i <= n_bounds; i++)
                if (!found[i, a]) broken[++n_broken] = a ": no kernel of the shape " shape[i] " (" begins[i] "...)"
        for (i = 1; i <= n_broken; i++) print broken[i]
        if (!n_kernels) print "no kernels"
        printf "%d kernels, those with mma shown: %s\n", n_kernels,
            n_broken ? n_broken " bounds broken" : "no local memory is touched, every product keeps its bound"
        exit n_broken > 0 || !n_kernels
    }' "$scratch/bounds" "$scratch/kernels"
status=$?
[ -z "$out" ] || cp "$scratch/csv" "$out"
exit $status
