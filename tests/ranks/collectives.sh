#!/usr/bin/env bash
# The collectives on 1 to 8 ranks: right, and float sums with the same bits; a missing plug-in and a wrong launcher are
# named. Usage: collectives.sh BUILD_FOLDER
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/mpi.sh"
build=$1 status=0 want=
fail() {
    echo "$1"
    status=1
}
for n in 1 2 3 4 5 8; do
    got=$(timeout 60 mpirun -n $n "$build/rank_collectives" 2>&1) || fail "$n ranks: $got"
    echo "$got"
    want=${want:-${got##* }}
    [ "${got##* }" = "$want" ] || fail "$n ranks: expected the same sums"
done
export GATETAPE_NCCL=$build/libnccl_standin.so
for fault in seed=7 late=3; do
    for n in 2 5; do
        got=$(NCCL_STANDIN=$fault timeout 100 mpirun -n $n "$build/rank_collectives" nccl 2>&1) || fail "NCCL, $fault: $got"
        echo "NCCL, $fault: $got"
        [ "${got##* }" = "$want" ] || fail "NCCL, $n ranks: expected the same sums"
    done
done
got=$(NCCL_STANDIN=async=1@5 timeout 100 mpirun -n 3 "$build/rank_collectives" nccl 2>&1) && fail "an error of NCCL: expected a failure"
grep -q 'gatetape: error: rank 1: collective #.*async error asked for' <<<"$got" || fail "an error of NCCL: $got"
got=$(timeout 100 mpirun -n 3 "$build/rank_collectives" mpi wrong_rows 2>&1) && fail "wrong rows: expected a failure"
grep -q 'rank 1: collective #.*a message from rank 0: expected 16 bytes: got 8' <<<"$got" || fail "wrong rows: $got"
got=$(timeout 100 mpirun -n 3 "$build/rank_collectives" nccl wrong_rows 2>&1) && fail "NCCL, wrong rows: expected a failure"
grep -q 'collective #.*invalid usage: rank 1 .*(16 of.*rank 0 .*(8 of' <<<"$got" || fail "NCCL, wrong rows: $got"
alone=$(timeout 60 "$build/rank_collectives" self)
[ "${alone##* }" = "$want" ] || fail "self: expected the same sums: got $alone"

expect() { # text, then a command that must fail with that text and code 2 or 3
    local says=$1 got code
    shift
    got=$(timeout 60 "$@" 2>&1)
    code=$?
    if [ $code = 2 ] || [ $code = 3 ]; then grep -q "$says" <<<"$got" || fail "$*: expected \"$says\": got $got"; else fail "$*: code $code: $got"; fi
}
expect 'nowhere.so: expected the MPI plug-in.*libopenmpi-dev' env GATETAPE_MPI=nowhere.so "$build/rank_collectives" mpi
expect 'srun: expected --mpi=pmix' env SLURM_STEP_NUM_TASKS=3 "$build/rank_collectives" mpi
expect 'expected the 3 processes that the launcher started: MPI sees 1' env PMI_SIZE=3 "$build/rank_collectives" mpi
expect 'comm self: expected one process: got 2' mpirun -n 2 "$build/rank_collectives" self
expect 'nowhere.so.*install libnccl2' env GATETAPE_NCCL=nowhere.so mpirun -n 2 "$build/rank_collectives" nccl
ldd "$build/rank_collectives" | grep -qi 'libmpi' && fail "expected a program that is not linked with MPI"
exit $status
