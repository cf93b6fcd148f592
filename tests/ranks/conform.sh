#!/usr/bin/env bash
# Golden cases on ranks: `gatetape conform` writes the same files and prints the same lines as one process, the experts on
# every rank or spread over them; a case that does not agree fails once, with code 1; a disk that is full for rank 0 alone,
# and a case that differs on one rank, end all with one line.
# `emulated`: a small case on emulated devices instead, the stand-in for NCCL between them, experts streamed too; `training`
# as well: one with LoRA.
#   conform.sh BUILD_FOLDER SOURCE_FOLDER short|long|emulated|training
. "$(dirname "$(readlink -f "$0")")/trial.sh"
golden=$source/tests/golden

cases=(mixtral mixtral_window) counts=(2 3) spread=(auto resident peers) more=()
case $how in
long) cases=(mixtral mixtral_window olmoe qwen3_moe qwen3_moe_dense_layer) counts=(2 3 4 8) ;;
emulated | training)
    program=$build/emulated/gatetape
    export GATETAPE_MPI=$build/gatetape_mpi.so GATETAPE_NCCL=$build/libnccl_standin.so NCCL_STANDIN=late=1,seed=5
    [ -x "$program" ] || { echo "WRONG: expected $program (make emulated)"; exit 1; }
    cases=(mixtral_window) counts=(2 3 8) spread=(resident streamed peers) more=(--device cuda --compute f32 --once)
    [ "$how" = training ] && cases=(mixtral) counts=(2) spread=(streamed peers) more=(--device cuda --compute f32)
    ;;
esac
says() { grep -v '^launched: ' "$1"; } # kernels, of rank 0 alone
for case in "${cases[@]}"; do
    timeout 600 "$program" conform "$golden/$case" "${more[@]}" --out "$case" >"$case.said" 2>&1 || { fail "$case"; cat "$case.said"; }
    for residency in "${spread[@]}"; do
        for n in "${counts[@]}"; do
            timeout 600 mpirun -n "$n" "$program" conform "$golden/$case" "${more[@]}" --residency "$residency" --out ranks \
                >said 2>&1 || { fail "$case, $residency, $n ranks"; cat said; }
            diff -r "$case" ranks >/dev/null || fail "$case, $residency, $n ranks: other files"
            diff <(says "$case.said") <(says said) || fail "$case, $residency, $n ranks: says otherwise"
            rm -rf ranks
        done
        echo "$case, $residency${more[*]:+ ${more[*]}}: same files on 1 ${counts[*]} ranks: $(tail -n 1 "$case.said")"
    done
done
case $how in emulated | training) exit $status ;; esac

# ---- what must fail ----
small=$golden/mixtral_window
cp -r "$small" spoiled && chmod -R u+w spoiled
size=$(stat -c %s spoiled/expected.safetensors)
printf '\x7f' | dd of=spoiled/expected.safetensors bs=1 seek=$((size - 1)) conv=notrunc status=none
timeout 60 mpirun -n 3 "$program" conform spoiled >said 2>&1
code=$?
[ $code = 1 ] || fail "a spoiled case: expected code 1: got $code"
[ "$(grep -c 'checks failed' said)" = 1 ] || { fail "a spoiled case: expected one verdict"; cat said; }

cat >each <<'RANK'
#!/bin/sh
case $WHAT:$OMPI_COMM_WORLD_RANK in
case:1) shift 2; exec "$PROGRAM" conform spoiled "$@" ;;
nothing:2) shift 2; exec "$PROGRAM" conform nowhere "$@" ;;
disk:*) export OMPI_MCA_btl=self,tcp OMPI_MCA_btl_tcp_if_include=lo ;;
esac
case $WHAT:$OMPI_COMM_WORLD_RANK in
disk:0) trap "" XFSZ; ulimit -f 40 ;;
esac
exec "$PROGRAM" "$@"
RANK
chmod +x each
ended() { # what, code, text
    local got code
    got=$(PROGRAM=$program WHAT=$1 timeout 60 mpirun -n 3 ./each conform "$small" --out "out-$1" 2>&1)
    code=$?
    [ $code = "$2" ] || fail "$1: expected code $2: got $code: $got"
    [ "$(grep -c 'gatetape: error:' <<<"$got")" = 1 ] || fail "$1: expected one line: got $got"
    grep -q "gatetape: error: .*$3" <<<"$got" || fail "$1: expected \"$3\": got $got"
    echo "$1: code $code: $(grep -m1 'gatetape: error:' <<<"$got" | cut -c1-200)"
}
ended case 2 'expected the same job and inputs on all: rank 0 .* rank 1 on'
ended nothing 2 'rank 2: .*nowhere'
ended disk 1 'rank 0: .*File too large'
timeout 60 "$program" conform "$small" --residency peers >said 2>&1
[ $? = 2 ] || { fail "peers on one rank: expected code 2"; cat said; }
timeout 60 "$program" conform "$small" --residency nowhere >said 2>&1
[ $? = 2 ] || { fail "an unknown residency: expected code 2"; cat said; }
exit $status
