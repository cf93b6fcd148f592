#!/usr/bin/env bash
# A rank of four meets a fate: all ranks end within the deadline and five seconds, with a code that is not 0 and one line
# that names rank, phase and collective; no process is left. `short`: each fate once; `long`: first, middle, last rank.
#   fates.sh BUILD_FOLDER short|long [LAUNCHER WORDS ...]      the launcher is mpirun -n 4 unless said
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/mpi.sh"
build=$1 how=$2
shift 2
launch=("$@")
[ $# -gt 0 ] || launch=(mpirun -n 4)
deadline=${DEADLINE:-2} status=0 n=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

try() {
    local fate=$1 who=$2 verdict=ok begun code took left line
    begun=$(date +%s.%N)
    timeout -s KILL 60 "${launch[@]}" "$build/rank_victim" "$fate" "$who" "$deadline" >"$log" 2>&1
    code=$?
    took=$(seconds_since "$begun")
    sleep 0.2
    left=$(pgrep -fc "^$build/rank_victim $fate $who" || true)
    line=$(grep -m1 'gatetape: error:' "$log" | cut -c1-230)
    case $fate in
    none | slow) [ $code = 0 ] && grep -q 'victim: done' "$log" && [ -z "$line" ] || verdict=WRONG ;;
    fails) [ $code != 0 ] && [[ $line == *"rank $who: weights.safetensors: expected"* ]] || verdict=WRONG ;;
    *)
        [ $code != 0 ] || verdict=WRONG
        { [[ $line == *"rank $who"* ]] && [[ $line == *"collective #"* ]] && [[ $line == *"(layer "* ]]; } || verdict=WRONG
        ;;
    esac
    [ "$left" = 0 ] || verdict=WRONG
    awk -v t="$took" -v d="$deadline" 'BEGIN { exit !(t > d + 5) }' && [ "$fate" != slow ] && verdict=WRONG
    # a rank's own line, not one of each: only a lost rank 0 may be reported by several
    [ "$(grep -c 'gatetape: error:' "$log")" -le 1 ] || [ "$who" = 0 ] || verdict=WRONG
    n=$((n + 1))
    printf '%-5s %-8s rank %s  code %-3s %5s s  %s\n' $verdict "$fate" "$who" $code "$took" "$line"
    [ $verdict = ok ] || { status=1; cat "$log"; }
}

fates=(killed segfault aborted leaves exits stopped sleeps spins skips other fails)
try none -1
try slow 2
i=0
for fate in "${fates[@]}"; do
    if [ "$how" = short ]; then
        case $fate in segfault | aborted | exits | spins | leaves | other) continue ;; esac
        whos=($((i % 2 ? 3 : 0)))
    else
        whos=(0 2 3)
    fi
    for who in "${whos[@]}"; do try "$fate" "$who"; done
    i=$((i + 1))
done
echo "$n fates"
exit $status
