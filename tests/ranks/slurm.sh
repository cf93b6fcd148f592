#!/usr/bin/env bash
# A one-node Slurm of its own (own folder, ports and key; nothing under /etc is touched), and under its srun: the fates of
# ranks, the program's bytes, and a time limit that ends a job so that another goes on with it. Needs root and Debian's
# slurmctld, slurmd, slurm-client and munge; skipped, saying so, without them.
#   slurm.sh BUILD_FOLDER SOURCE_FOLDER
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/mpi.sh"
build=$1 source=$2 status=0
for tool in slurmctld slurmd srun sbatch munged setpriv; do
    command -v $tool >/dev/null || { echo "skipped: no $tool (apt-get install slurmctld slurmd slurm-client munge)"; exit 0; }
done
[ "$(id -u)" = 0 ] || { echo "skipped: slurmd wants root"; exit 0; }
folder=$(mktemp -d)
port=$((20000 + RANDOM % 20000))
host=$(hostname -s)
chmod 755 "$folder"
mkdir -p "$folder"/{munge,state,spool,work}

# The three daemons whose ids stand in our folder, no other.
finish() {
    local file process
    for file in slurmd.pid slurmctld.pid munge/pid; do
        [ -s "$folder/$file" ] || continue
        process=$(cat "$folder/$file")
        kill "$process" 2>/dev/null
        for _ in $(seq 50); do kill -0 "$process" 2>/dev/null || break; sleep 0.1; done
    done
    rm -rf "$folder"
}
trap finish EXIT

dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 2>/dev/null
chown -R munge: "$folder/munge" && chmod 711 "$folder/munge" && chmod 600 "$folder/munge/key"
setpriv --reuid munge --regid munge --clear-groups munged --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
    --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" --force 2>/dev/null
cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=5
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=1000
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' >"$folder/cgroup.conf"
: >"$folder/plugstack.conf"
export SLURM_CONF=$folder/slurm.conf
slurmctld -f "$SLURM_CONF" && slurmd -f "$SLURM_CONF" -N "$host"
for _ in $(seq 60); do sinfo -h -o %T 2>/dev/null | grep -q idle && break; sleep 0.5; done
sinfo -h -o %T | grep -q idle || { echo "WRONG: no node came up"; tail -3 "$folder/slurmctld.log" "$folder/slurmd.log"; exit 1; }
unset OMPI_MCA_rmaps_base_oversubscribe
echo "# the same under srun, Slurm $(slurmctld -V | awk '{ print $2 }')"
bash "$here/fates.sh" "$build" long srun -n 4 --mpi=pmix || status=1

fail() {
    echo "WRONG: $1"
    status=1
}
cp -r "$source/configs" "$folder/work/"
cd "$folder/work" || exit 1
sed -i -e '/"kind": "report"/d' -e 's/\(gradient_reply.*\]}\),$/\1/' configs/jobs/demo.json
same() { diff -rq -x manifest.json -x events.jsonl -x job.json whole "$1"; }
"$build/gatetape" run configs/jobs/demo.json --out whole 2>log || { cat log; exit 1; }
srun -n 3 --mpi=pmix "$build/gatetape" run configs/jobs/demo.json --out three 2>log || { fail "srun -n 3"; cat log; }
same three && echo "srun -n 3: same bytes"
srun -n 2 --mpi=none "$build/gatetape" run configs/jobs/demo.json --out wrong >log 2>&1 && fail "srun without pmix: expected a refusal"
grep -q 'gatetape: error: srun: expected --mpi=pmix' log || { fail "srun without pmix"; cat log; }

# the recipe, with a signal before the limit in place of two minutes before four hours
GATETAPE=$build/gatetape sbatch --wait --cpus-per-task=1 --output=batch.log configs/slurm/one_node.sbatch configs/jobs/demo.json \
    --out batch >/dev/null || { fail "sbatch"; cat batch.log; }
same batch && echo "sbatch configs/slurm/one_node.sbatch: same bytes"
srun -n 4 --mpi=pmix --job-name=limited "$build/gatetape" run configs/jobs/demo.json --out limited --set batch_prompts=1 \
    --set batch_tokens=40 2>log &
pid=$!
for _ in $(seq 200); do [ -n "$(find limited -path '*blocks*' -name '*.safetensors' 2>/dev/null)" ] && break; sleep 0.05; done
scancel --signal=TERM --name=limited
wait $pid
code=$?
grep -q 'gatetape: error: .*interrupted' log || { fail "TERM by scancel: expected a line that says interrupted"; cat log; }
[ $code != 0 ] || fail "TERM by scancel: expected a code that is not 0"
srun -n 2 --mpi=pmix "$build/gatetape" run configs/jobs/demo.json --out limited --set batch_prompts=1 --set batch_tokens=40 2>log ||
    { fail "TERM by scancel: not resumed"; cat log; }
same limited && echo "TERM by scancel of 4, gone on with by 2: same bytes"
exit $status
