#!/usr/bin/env bash
# On a machine with GPUs, MPI and NCCL: ranks on the GPUs there are give the bytes of one rank, with NCCL and through the
# host, whatever the residency. Says how far it came, and where it stopped.
#   gpu_ranks.sh PROGRAM [RANKS]      PROGRAM: build/gatetape, or that of a package; 2 ranks unless said
# With fewer GPUs than ranks all share the first, which NCCL allows from 2.30 on (older ones say "Duplicate GPU").
# RANK_PROGRAMS names a folder with rank_collectives_gpu, which is tried first. Exit code 0: the same bytes by NCCL.
set -uo pipefail
program=$(readlink -f "$1") ranks=${2:-2} status=0 by_nccl=0
source=$(dirname "$(dirname "$(readlink -f "$0")")")
[ -d "$source/configs" ] || source=$(dirname "$program")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
launch=(mpirun -n "$ranks" --bind-to none --oversubscribe)
stop() {
    echo "stops: $1"
    exit 1
}

command -v mpirun >/dev/null || stop "no mpirun: install an MPI"
n_gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')
[ "$n_gpus" -gt 0 ] || stop "nvidia-smi lists no GPU"
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
echo "$ranks ranks on $n_gpus GPUs"
if [ "$n_gpus" -lt "$ranks" ]; then
    export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} NCCL_MULTI_RANK_GPU_ENABLE=1
    CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES%%,*}
    echo "all ranks share GPU $CUDA_VISIBLE_DEVICES"
fi

# The last words of a failed run.
why() { grep -m1 'gatetape: error:' "$1" || tail -n 3 "$1"; }

if [ -n "${RANK_PROGRAMS:-}" ]; then
    alone=$(timeout 60 "$RANK_PROGRAMS/rank_collectives_gpu" self 2>&1)
    for kind in mpi nccl; do
        timeout 120 "${launch[@]}" "$RANK_PROGRAMS/rank_collectives_gpu" $kind device >"$folder/log" 2>&1
        if [ $? = 0 ] && [ "$(awk '/^ok/ { print $NF }' "$folder/log")" = "${alone##* }" ]; then
            echo "collectives, $kind: the sums of one rank"
        else
            echo "collectives, $kind: $(why "$folder/log")"
            status=1
        fi
    done
fi

cat >"$folder/job.json" <<JOB
{"schema_version": 1, "device": "cuda",
 "models": {"demo": {"path": "$source/configs/demo/model", "chat_template": "phi35moe"}},
 "prompts": {"ordinary": {"path": "$source/configs/demo/prompts/rank_ordinary.jsonl", "limit": 24},
             "restricted": {"path": "$source/configs/demo/prompts/rank_restricted.jsonl", "limit": 24}},
 "steps": [{"name": "activation", "kind": "activation", "model": "demo", "groups": ["ordinary", "restricted"], "trace": "full"},
           {"name": "reply", "kind": "activation", "tokens": "generated", "max_new_tokens": 8, "model": "demo",
            "groups": ["ordinary", "restricted"]},
           {"name": "gradient", "kind": "gradient", "loss": "target", "model": "demo", "groups": ["ordinary", "restricted"],
            "gate_rows": true}]}
JOB
timeout 120 "$program" run "$folder/job.json" --out "$folder/whole" >"$folder/log" 2>&1 || stop "one rank: $(why "$folder/log")"
for kind in mpi nccl; do
    for residency in resident streamed peers; do
        rm -rf "$folder/ranks"
        begun=$(date +%s.%N)
        timeout 120 "${launch[@]}" "$program" run "$folder/job.json" --comm $kind --set residency=$residency \
            --out "$folder/ranks" >"$folder/log" 2>&1
        code=$?
        took=$(awk -v a="$begun" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
        if [ $code != 0 ]; then
            echo "$kind, $residency: code $code after $took s: $(why "$folder/log")"
            status=1
        elif diff -rq -x manifest.json -x events.jsonl -x job.json "$folder/whole" "$folder/ranks" >"$folder/log"; then
            echo "$kind, $residency: same bytes, $took s"
            [ $kind = mpi ] || by_nccl=$((by_nccl + 1))
        else
            echo "$kind, $residency: other bytes: $(head -n 1 "$folder/log")"
            status=1
        fi
    done
done
[ "$by_nccl" = 3 ] || echo "NCCL gave the same bytes in $by_nccl of 3 residencies"
exit $status
