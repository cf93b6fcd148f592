#!/usr/bin/env bash
# Ranks that each have an emulated device, with the stand-in for NCCL between them, or MPI through the host: collectives
# give the same sums, and run folders have the same bytes as that of one rank; a missing library is named.
#   emulated.sh BUILD_FOLDER SOURCE_FOLDER short|long
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/mpi.sh"
build=$1 source=$2 how=$3 status=0
program=$build/emulated/gatetape
export GATETAPE_MPI=$build/gatetape_mpi.so GATETAPE_NCCL=$build/libnccl_standin.so
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 1
fail() {
    echo "WRONG: $1"
    status=1
}

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

# ---- a job: each rank has the whole model ----
cat >ranks.json <<JOB
{
  "schema_version": 1,
  "models": {"demo": {"path": "$source/configs/demo/model", "chat_template": "phi35moe"}},
  "prompts": {
    "ordinary": {"path": "$source/configs/demo/prompts/rank_ordinary.jsonl", "limit": 2},
    "restricted": {"path": "$source/configs/demo/prompts/rank_restricted.jsonl", "limit": 3}
  },
  "device": "cuda",
  "steps": [
    {"name": "activation", "kind": "activation", "model": "demo", "groups": ["ordinary", "restricted"], "trace": "full"},
    {"name": "gradient", "kind": "gradient", "loss": "target", "model": "demo", "groups": ["ordinary", "restricted"],
     "gate_rows": true}
  ]
}
JOB
timeout 300 "$program" run ranks.json --out whole 2>log || { cat log; exit 1; }
# ranks, how they talk, more words
run() {
    local n=$1 kind=$2
    shift 2
    NCCL_STANDIN=late=1,seed=$n timeout 300 mpirun -n "$n" "$program" run ranks.json --comm "$kind" --out ranks "$@" 2>log ||
        { fail "$n ranks, $kind $*"; cat log; }
    if diff -rq -x manifest.json -x events.jsonl whole ranks; then echo "$n ranks, $kind $*: same bytes"; else fail "$n ranks, $kind $*: other bytes"; fi
    rm -rf ranks
}
counts=(2)
[ "$how" = long ] && counts=(1 2 3 4 8)
for n in "${counts[@]}"; do run "$n" nccl; done

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
