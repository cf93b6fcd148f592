#!/usr/bin/env bash
# Makes a folder that runs on another x86-64 Linux machine, with or without a GPU, no root and whatever C library it has: the
# programs, the libraries they need but the driver's, a loader of its own, configs, golden cases and benches.
#   package.sh BUILD_FOLDER OUT_FOLDER
# OUT/gatetape runs the program; OUT/gpu_check runs everything that needs a GPU. CUDA's own libraries (cuBLAS for the
# bench) are found where a node has them: CUDA_HOME, /usr/local/cuda, LD_LIBRARY_PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1 out=$2
rm -rf "$out"
mkdir -p "$out"/{bin,lib,tests,bench/results}
programs=("$build/gatetape")
for program in "$build"/tests_gpu "$build"/test_conformance_gpu; do
    [ -x "$program" ] && programs+=("$program")
done
for program in "${programs[@]}"; do
    strip -o "$out/bin/$(basename "$program")" "$program"
    ldd "$program" | awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\/.*ld-linux/ { print $1 }'
done | sort -u | while read -r library; do
    case "$library" in *libcuda.so*) ;; *) cp -L "$library" "$out/lib/" ;; esac
done
mkdir "$out/mpi" # several ranks: the plug-in, and its source for the site's own mpicc (docs/ranks.md)
cp engine/comm_mpi.[ch] engine/alloc.[ch] "$out/mpi/"
[ ! -f "$build/gatetape_mpi.so" ] || cp "$build/gatetape_mpi.so" "$out/mpi/"
cp -r configs "$out/configs"
cp -r tests/golden "$out/tests/golden"
cp tools/compare_training.awk "$out/tests/"
cp bench/peers.py bench/peers_gpu.py bench/run.sh "$out/bench/"
cp tools/gpu_check.sh "$out/gpu_check"
cp README.md "$out/README.md"

# A program under its own loader: $0 finds the folder, so that it can be moved.
for program in "$out"/bin/*; do
    program=$(basename "$program")
    cat >"$out/$program" <<'WRAPPER'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
export GATETAPE_CONFIGS="${GATETAPE_CONFIGS:-$here/configs}"
export GATETAPE_MPI="${GATETAPE_MPI:-$here/mpi/gatetape_mpi.so}"
cuda="${CUDA_HOME:-/usr/local/cuda}/lib64"
exec "$here/lib/ld-linux-x86-64.so.2" --library-path "$here/lib:${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$cuda:/usr/lib/x86_64-linux-gnu:/usr/lib64" \
    "$here/bin/$(basename "$0")" "$@"
WRAPPER
    chmod +x "$out/$program"
done
chmod +x "$out/gpu_check"
du -sm "$out" | awk '{ print "packaged: " $2 ", " $1 " MB (limit 60)"; exit $1 > 60 }'
