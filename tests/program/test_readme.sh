#!/usr/bin/env bash
# Every command of the README's list of verbs works as it stands there.   test_readme.sh PROGRAM SOURCE_FOLDER
set -euo pipefail
program=$1 source=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir build
ln -s "$program" build/gatetape
ln -s "$source/configs" configs
ln -s "$source/tests" tests
build/gatetape run configs/jobs/demo.json --out runs/demo >/dev/null 2>log || { cat log; exit 1; }
n=0
while read -r command; do
    bash -c "$command" >out 2>log </dev/null || { echo "$command: exit $?"; cat log; exit 1; }
    [ -s out ] || [ -s log ] || { echo "$command: no output"; exit 1; }
    n=$((n + 1))
done < <(sed -n '/^## Verbs/,/^Exit codes/p' "$source/README.md" | grep 'build/gatetape')
[ "$n" -ge 6 ] || { echo "only $n commands found in the README"; exit 1; }
echo "$n commands run"
