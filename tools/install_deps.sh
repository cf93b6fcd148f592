#!/usr/bin/env bash
# Installs the Debian packages that gatetape needs: `install_deps.sh` for building and running, `install_deps.sh test`
# for the tests too, `install_deps.sh bench` for the benchmarks too. Prints what is missing; asks for root only then.
set -euo pipefail

packages=(build-essential cmake pkg-config libcjson-dev libpcre2-dev libutf8proc-dev gnuplot-nox)
case "${1:-build}" in
build) ;;
test) packages+=(openmpi-bin libopenmpi-dev libcmocka-dev clang-14 clang-format-14 libclang-rt-14-dev libomp-14-dev xz-utils libxml2-utils) ;;
bench) packages+=(libopenblas-dev) ;;
*)
    echo "usage: install_deps.sh [build|test|bench]" >&2
    exit 2
    ;;
esac

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi
echo "installing: ${missing[*]}" >&2
root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "run as root: apt-get install ${missing[*]}" >&2; exit 1; }
    root=(sudo)
fi
"${root[@]}" apt-get -qq update
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
