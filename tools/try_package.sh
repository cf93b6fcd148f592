#!/usr/bin/env bash
# Tries a package folder (tools/package.sh) in a minimal root of an older Debian, as a user without rights: the version, a
# golden case, the demo job, gpu_check. Exit status 0: all passed.
#   try_package.sh [PACKAGE] [SUITE] [MIRROR]      build/package, bullseye, http://deb.debian.org/debian by default
# Needs root (chroot) and debootstrap; ROOT names an existing root to use instead of a new one.
set -uo pipefail
cd "$(dirname "$0")/.."
package=$(readlink -f "${1:-build/package}") suite=${2:-bullseye} mirror=${3:-http://deb.debian.org/debian}
[ -x "$package/gatetape" ] || { echo "$package: expected a package folder (make package)"; exit 2; }
[ "$(id -u)" = 0 ] || { echo "expected root, to make a root of $suite and enter it"; exit 2; }

scratch=$(mktemp -d)
trap 'rm -rf --one-file-system "$scratch"' EXIT
root=${ROOT:-$scratch/root}
if [ ! -x "$root/bin/sh" ]; then
    command -v debootstrap >/dev/null || { echo "expected debootstrap"; exit 2; }
    debootstrap --variant=minbase "$suite" "$root" "$mirror" >"$scratch/said" 2>&1 ||
        { tail -n 5 "$scratch/said"; echo "$suite from $mirror: no root"; exit 1; }
fi
chmod 755 "$scratch"
place=$(mktemp -d -p "$root/opt")
trap 'rm -rf --one-file-system "$place" "$scratch"' EXIT
chmod 755 "$place"
cp -a "$package/." "$place/"
install -d -m 777 "$place/out"
inside() { chroot --userspec=65534:65534 "$root" /bin/sh -c "cd ${place#"$root"} && $1"; }

echo "Debian $(cat "$root/etc/debian_version"), $(chroot "$root" ldd --version | head -n 1)"
if inside 'bin/gatetape --version' >"$scratch/said" 2>&1; then
    echo "note: the program runs there without the package's loader too"
else
    echo "without the package's loader: $(head -n 1 "$scratch/said")"
fi
failures=0
for command in './gatetape --version' './gatetape conform tests/golden/mixtral --device cpu' \
    './gatetape run configs/jobs/demo.json --set device=cpu --out out/demo' './gpu_check'; do
    if inside "$command" >"$scratch/said" 2>&1; then
        echo "passed: $command: $(tail -n 1 "$scratch/said")"
    else
        echo "FAILED: $command"
        tail -n 20 "$scratch/said"
        failures=$((failures + 1))
    fi
done
exit $((failures > 0))
