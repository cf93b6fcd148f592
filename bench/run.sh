#!/usr/bin/env bash
# Makes the random model, measures it in f32 and bf16 beside this machine's limits and the installed peers, and writes
# bench/results/cpu.csv.   run.sh BUILD_FOLDER   (GATETAPE_PEERS: a python that has torch, transformers, llama_cpp, gguf)
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1 python=${GATETAPE_PEERS:-python3}
cmake --build "$build" --target bench_gemm >/dev/null
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)} OPENBLAS_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}
header=case,backend,threads,dtype,seconds_median,rate,unit,ceiling,share,peer,peer_rate,ratio
mkdir -p bench/results
echo "$header" >"$folder/all.csv"
for dtype in f32 bf16; do
    "$build/gatetape" bench checkpoint --model "$folder/$dtype" --compute "$dtype" --device cpu
    "$build/gatetape" bench model --model "$folder/$dtype" --compute "$dtype" --device cpu | tee "$folder/own.csv"
    if "$python" -c 'import torch, transformers' 2>/dev/null; then
        "$python" bench/peers.py "$folder/$dtype" "$folder/own.csv" "$folder/joined.csv"
        tail -n +2 "$folder/joined.csv" >>"$folder/all.csv"
    else
        echo "no peers: $python has no torch and transformers" >&2
        cat "$folder/own.csv" >>"$folder/all.csv"
    fi
    rm -rf "${folder:?}/$dtype"
done
cp "$folder/all.csv" bench/results/cpu.csv
column -s, -t bench/results/cpu.csv
