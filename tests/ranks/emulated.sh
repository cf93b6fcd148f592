#!/usr/bin/env bash
# Ranks that each have an emulated device, with the stand-in for NCCL between them, or MPI through the host: collectives
# give the same sums, and run folders have the same bytes as that of one rank; a missing library is named.
#   emulated.sh BUILD_FOLDER SOURCE_FOLDER short|long
. "$(dirname "$(readlink -f "$0")")/trial.sh"
program=$build/emulated/gatetape
export GATETAPE_MPI=$build/gatetape_mpi.so GATETAPE_NCCL=$build/libnccl_standin.so

# ---- collectives on memory of the device ----
want=$(timeout 60 "$build/rank_collectives" self) || fail "self: $want"
for how_many in 2:nccl: 3:nccl:late=2 3:mpi: 5:nccl:seed=7; do
    IFS=: read -r n kind fault <<<"$how_many"
    got=$(NCCL_STANDIN=$fault timeout 100 mpirun -n "$n" "$build/emulated/rank_collectives" "$kind" device 2>&1) || fail "$kind: $got"
    echo "$kind $fault: $got"
    [ "${got##* }" = "${want##* }" ] || fail "$kind $fault, $n ranks: expected the same sums"
done

# ---- a spread model: passes forward and back, whatever travels ----
want=
passes() { # ranks, ranks of a node, residency, how they talk
    local got
    got=$(NCCL_STANDIN=late=1,seed=$1 timeout 300 mpirun -n "$1" "$build/emulated/rank_peers" "$source/tests/golden/olmoe" bf16 "$2" "$3" "$4" 2>&1) ||
        fail "$*: $got"
    echo "$3, $4: $got"
    want=${want:-${got##* }}
    [ "${got##* }" = "$want" ] || fail "$*: expected the same bits"
}
passes 1 1 resident nccl
if [ "$how" = short ]; then
    passes 3 3 resident nccl
    passes 2 2 streamed mpi
    passes 4 2 peers nccl
else
    for n in 2 3 4 8; do
        for residency in resident streamed peers; do
            for kind in nccl mpi; do passes "$n" "$n" $residency $kind; done
        done
    done
    passes 5 3 peers nccl
fi

# ---- golden cases: the files of one rank ----
conform() { # ranks, case, residency, more words
    local n=$1 case=$2 residency=$3 words=()
    shift 3
    [ "$residency" = alone ] || words=(--residency "$residency")
    NCCL_STANDIN=seed=$n timeout 500 mpirun -n "$n" "$program" conform "$source/tests/golden/$case" --device cuda "${words[@]}" "$@" \
        --out "$case-$n-$residency" >log 2>&1 || { fail "$case, $n ranks, $residency"; cat log; }
}
cases=(mixtral_window) counts=(2) words=(--once)
[ "$how" = long ] && cases=(mixtral mixtral_window olmoe qwen3_moe qwen3_moe_dense_layer) counts=(2 3 4 8) words=()
for case in "${cases[@]}"; do
    conform 1 "$case" alone "${words[@]}"
    for n in "${counts[@]}"; do
        for residency in resident streamed peers; do
            conform "$n" "$case" $residency "${words[@]}"
            diff -r "$case-1-alone" "$case-$n-$residency" >log || fail "$case, $n ranks, $residency: other files: $(head -n 3 log)"
        done
    done
    echo "$case: same files on 1 ${counts[*]} ranks, resident, streamed and peers"
done

# ---- a job, on each rank the whole model or a part of its experts ----
prompts() { printf '{"path": "%s/configs/demo/prompts/%s.jsonl", "limit": %s%s}' "$source" "$@"; }
cat >ranks.json <<JOB
{
  "schema_version": 1,
  "models": {"demo": {"path": "$source/configs/demo/model", "chat_template": "phi35moe"}},
  "prompts": {
    "ordinary": $(prompts rank_ordinary 2 ""),
    "restricted": $(prompts rank_restricted 3 ""),
    "test": $(prompts test_restricted 3 ""),
    "tuning": $(prompts heldout_restricted 5 ', "use": "tuning"')
  },
  "device": "cuda",
  "steps": [
    {"name": "activation", "kind": "activation", "model": "demo", "groups": ["ordinary", "restricted"], "trace": "full"},
MORE
    {"name": "gradient", "kind": "gradient", "loss": "target", "model": "demo", "groups": ["ordinary", "restricted"],
     "gate_rows": true}
  ]
}
JOB
more=
[ "$how" = long ] && more='{"name": "reply", "kind": "activation", "tokens": "generated", "max_new_tokens": 4, "model": "demo",\
     "groups": ["restricted"]},\
    {"name": "silenced", "kind": "intervention", "model": "demo", "groups": ["test"], "max_new_tokens": 4,\
     "from": ["activation"], "rank_groups": ["restricted", "ordinary"], "top": [2], "random_sets": 0,\
     "layer_matched_sets": 0, "traffic_matched_sets": 0},\
    {"name": "tune", "kind": "tune", "groups": ["tuning"], "cells": ["2:1", "3:4"], "rank": 4, "alpha": 8, "examples": 3,\
     "learning_rate": 0.001, "warmup": 1, "epochs": 1},'
sed -i "s|^MORE$|$more|" ranks.json
timeout 500 "$program" run ranks.json --out whole >log 2>&1 || { cat log; exit 1; }
run() { # ranks, how they talk, residency
    NCCL_STANDIN=late=1,seed=$1 timeout 900 mpirun -n "$1" "$program" run ranks.json --comm "$2" --set residency="$3" --out ranks >log 2>&1 ||
        { fail "$* ranks"; cat log; }
    [ "$3" = auto ] || grep -q "model demo: $3, experts over" log || [ "$1" = 1 ] || fail "$*: expected experts that are spread"
    if diff -rq -x manifest.json -x events.jsonl -x job.json whole ranks; then echo "$1 ranks, $2, $3: same bytes"; else fail "$*: other bytes"; fi
    rm -rf ranks
}
if [ "$how" = short ]; then
    run 3 nccl resident
    run 2 nccl streamed
    run 2 mpi peers
else
    run 1 nccl resident
    for n in 2 3 4 8; do
        for residency in auto resident streamed peers; do run "$n" nccl $residency; done
    done
    for residency in resident streamed peers; do run 3 mpi $residency; done
fi

# ---- what is missing ----
got=$(GATETAPE_NCCL=nowhere.so timeout 60 mpirun -n 2 "$program" run ranks.json --comm nccl --out ranks 2>&1)
code=$?
[ $code = 3 ] || fail "no NCCL: expected code 3: got $code"
grep -q 'gatetape: error: .*nowhere.so; install libnccl2' <<<"$got" || fail "no NCCL: got $got"
got=$(timeout 60 mpirun -n 2 "$program" run ranks.json --comm nccl --set device=cpu --out ranks 2>&1)
code=$?
[ $code = 2 ] || fail "NCCL without a GPU: expected code 2: got $code"
grep -q 'gatetape: error: --comm nccl: expected a GPU' <<<"$got" || fail "NCCL without a GPU: got $got"
exit $status
