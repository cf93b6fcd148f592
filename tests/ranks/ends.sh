#!/usr/bin/env bash
# A rank of `gatetape run` meets a fate in the middle of a job: all ranks end within the deadline and five seconds, with a
# code that is not 0 and one line that names the rank; no process is left, and the same command, on another number of ranks,
# goes on to the same bytes. `short`: each fate once; `long`: first, middle and last rank.
#   ends.sh BUILD_FOLDER SOURCE_FOLDER short|long
. "$(dirname "$(readlink -f "$0")")/trial.sh"
n=0 deadline=2 size=4 mounted=
finish() {
    [ -z "$mounted" ] || umount "$folder/disk"
    rm -rf "$folder"
}
trap finish EXIT
cp -r "$source/configs" .
mkdir disk pids

cat >configs/jobs/ends.json <<'JOB'
{
  "schema_version": 1,
  "models": {"demo": {"path": "../demo/model", "chat_template": "phi35moe"}},
  "prompts": {
    "ordinary": {"path": "../demo/prompts/rank_ordinary.jsonl"},
    "restricted": {"path": "../demo/prompts/rank_restricted.jsonl"}
  },
  "steps": [
    {"name": "activation", "kind": "activation", "model": "demo", "groups": ["ordinary", "restricted"], "trace": "full"},
    {"name": "gradient", "kind": "gradient", "loss": "target", "model": "demo", "groups": ["ordinary", "restricted"],
     "gate_rows": true},
    {"name": "reply", "kind": "activation", "tokens": "generated", "max_new_tokens": 24, "model": "demo",
     "groups": ["ordinary", "restricted"]}
  ]
}
JOB
# a node that lacks a file of the model, one with another program; each rank says who it is
mkdir elsewhere && cp -r configs elsewhere/ && rm elsewhere/configs/demo/model/model.safetensors
cp "$program" other && printf 'x' >>other && cp "$build/gatetape_mpi.so" .
cat >each <<'RANK'
#!/bin/sh
echo $$ >"pids/$OMPI_COMM_WORLD_RANK"
if [ "$OMPI_COMM_WORLD_RANK" = "$WHO" ]; then
    case $FATE in
    file) cd elsewhere ;;
    program) exec ./other "$@" ;;
    job) exec "$PROGRAM" "$@" --set seed=7 ;;
    esac
fi
exec "$PROGRAM" "$@"
RANK
chmod +x each
run=(run configs/jobs/ends.json --set batch_prompts=1 --deadline $deadline)
timeout 120 "$program" "${run[@]}" --out whole >log 2>&1 || { cat log; exit 1; }

# What befalls the process in the middle of the run; those of `each` befell it at its start.
meet() {
    local process
    process=$(cat "pids/$who")
    case $fate in
    killed) kill -KILL "$process" ;;
    segfault) kill -SEGV "$process" ;;
    stopped) kill -STOP "$process" ;;
    memory) prlimit --pid "$process" --as=$(($(awk '/VmSize/ { print $2 }' "/proc/$process/status") * 1024)) ;;
    disk) dd if=/dev/zero of=disk/filler bs=64k 2>/dev/null ;;
    esac
}

in_the_middle() {
    [ "$(find "$out" -path '*blocks*' -name '*.safetensors' 2>/dev/null | wc -l)" -gt 0 ]
}

# code, text that the line must have
expected() {
    case $fate in
    killed) [ $code != 0 ] && [[ $line == *"rank $who"*"ended without goodbye"* ]] ;;
    segfault) [ $code != 0 ] && [[ $line == *"rank $who"*"ended without goodbye"* ]] ;;
    stopped) [ $code != 0 ] && [[ $line == *"rank $who"*"does not answer"* ]] ;;
    memory) [ $code = 3 ] && [[ $line == *"rank $who: "*"of memory"* ]] ;;
    disk) [ $code = 1 ] && [[ $line == *"rank 0: "*"No space left"* ]] ;;
    file | program | job) [ $code = 2 ] && [[ $line == *"expected the same"*"rank $((who ? who : 1)) on"* ]] ;;
    esac
}

try() {
    fate=$1 who=$2 out=ranks
    local verdict=ok begun took left met=
    [ "$fate" = disk ] && out=disk/ranks
    rm -rf "$out" pids/*
    FATE=$fate WHO=$who PROGRAM=$program timeout -s KILL 60 mpirun -n $size ./each "${run[@]}" --out "$out" >log 2>&1 &
    local launcher=$!
    begun=$(date +%s.%N)
    while kill -0 $launcher 2>/dev/null && [ -z "$met" ]; do
        sleep 0.02
        case $fate in file | program | job) ;; *) in_the_middle && begun=$(date +%s.%N) && meet && met=yes ;; esac
    done
    wait $launcher 2>/dev/null
    code=$?
    took=$(seconds_since "$begun")
    sleep 0.2
    left=$(cat pids/* | while read -r process; do grep -s '^State:' "/proc/$process/status"; done | grep -vc 'zombie')
    line=$(grep -m1 'gatetape: error:' log | cut -c1-230)
    expected || verdict=WRONG
    [ "$left" = 0 ] || { verdict=WRONG; echo "left: $left"; }
    awk -v t="$took" -v d="$deadline" 'BEGIN { exit !(t > d + 5) }' && verdict=WRONG
    # a rank's own line, not one of each: only a lost rank 0 may be reported by several
    [ "$(grep -c 'gatetape: error:' log)" -le 1 ] || [ "$who" = 0 ] || verdict=WRONG
    [ ! -f "$out/reply/step.json" ] || verdict=WRONG # it came too late to be met
    rm -f disk/filler
    n=$((n + 1))
    resume || { verdict=WRONG; echo "not gone on with"; }
    printf '%-5s %-8s rank %s  code %-3s %5s s  %s\n' $verdict "$fate" "$who" $code "$took" "$line"
    [ $verdict = ok ] || { status=1; cat log; }
}

resume() {
    local then=$((who + 1))
    timeout 120 mpirun -n $then "$program" "${run[@]}" --out "$out" >again 2>&1 || { cat again; return 1; }
    diff -rq -x manifest.json -x events.jsonl whole "$out"
}

fates=(killed segfault stopped memory disk file program job)
if mount -t tmpfs -o size=32m none disk 2>/dev/null; then
    mounted=yes
else
    fates=(killed segfault stopped memory file program job)
    echo "skipped: a full disk, no file system of its own can be mounted here"
fi
for fate in "${fates[@]}"; do
    if [ "$fate" = disk ]; then whos=(0); else whos=(0 2 3); fi # rank 0 alone writes
    if [ "$how" = short ]; then
        case $fate in
        killed) whos=(0) ;;
        stopped) whos=(3) ;;
        memory | file) whos=(2) ;;
        segfault | program | job) continue ;;
        esac
    fi
    for rank in "${whos[@]}"; do try "$fate" "$rank"; done
done
echo "$n ends of a run"
exit $status
