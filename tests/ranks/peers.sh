#!/usr/bin/env bash
# Weights that travel among ranks, of one group and of several, against one rank that has them all: the same bits, as
# many gathers and bytes as the plan says. Usage: peers.sh BUILD_FOLDER SOURCE_FOLDER
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/mpi.sh"
build=$1 source=$2 status=0
for model in configs/demo/model,bf16 configs/demo/model,f32 tests/golden/qwen3_moe_dense_layer,f32 tests/golden/olmoe,bf16; do
    folder=$source/${model%,*} compute=${model#*,} want=
    # ranks, and how many of them are a node: a group lies within one
    for ranks in 1,1 2,2 3,3 4,4 4,2 5,3; do
        got=$(timeout 100 mpirun -n "${ranks%,*}" "$build/rank_peers" "$folder" "$compute" "${ranks#*,}" 2>&1) || { echo "$model, $ranks: $got"; status=1; }
        want=${want:-${got##* }}
        [ "${got##* }" = "$want" ] || { echo "$model, $ranks: expected $want: got $got"; status=1; }
    done
    echo "$model: $want"
done
exit $status
