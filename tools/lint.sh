#!/usr/bin/env bash
# House rules that a machine can check: layout, size budgets, direction of includes, who may call what, words that must
# not stand in the tree. Prints every breach; exit status 1 if there is one.
set -uo pipefail
cd "$(dirname "$0")/.."
status=0
fail() {
    printf '%s\n' "$1"
    status=1
}
sources=$(git ls-files '*.c' '*.h' '*.cu' '*.cuh' '*.cpp')

format=$(command -v clang-format-14 || command -v clang-format)
for file in $sources; do
    "$format" "$file" | cmp -s - "$file" || fail "$file: not laid out by clang-format"
done

for file in $sources; do
    lines=400 parameters=7 length=60
    case "$file" in
    kernels/cpu/gemm*) lines=500 parameters=16 ;;
    kernels/cuda/*) lines=500 parameters=16 length=150 ;;
    tests/emulator/cublas.cpp) parameters=20 ;;
    kernels/*|autograd/nn*|tests/kernels/*) parameters=16 ;;
    esac
    case "$file" in tests/*|bench/*) lines=800 length=120 ;; esac
    awk -v lines=$lines -v length_max=$length -v depth_max=4 -v parameters_max=$parameters -f tools/lint.awk "$file" ||
        status=1
done

# kernels <- autograd <- engine <- analysis: a layer includes itself and those before it.
check_layer() {
    local layer=$1 forbidden=$2
    local found
    found=$(git ls-files "$layer/*.c" "$layer/*.h" "$layer/*.cu" "$layer/*.cuh" |
        xargs -r grep -nE "#include \"(\.\./)*($forbidden)/" /dev/null)
    [ -z "$found" ] || fail "$found
$layer/ must not include $forbidden"
}
check_layer kernels 'autograd|engine|analysis'
check_layer autograd 'engine|analysis'
check_layer engine 'analysis'

only_in() {
    local pattern=$1 allowed=$2 found
    found=$(git grep -nE "$pattern" -- 'kernels/*.[ch]' 'autograd/*.[ch]' 'engine/*.[ch]' 'analysis/*.[ch]' | grep -vE "^($allowed):")
    [ -z "$found" ] || fail "$found
only allowed in: $allowed"
}
only_in '#include <cjson' 'engine/json\.c'
only_in '#include [<"](nccl|mpi)\.h' 'engine/comm_(nccl|mpi)\.c'
only_in '(^|[^a-zA-Z0-9_])exit\(' 'analysis/main\.c'
only_in '(^|[^a-zA-Z0-9_>.])(malloc|calloc|realloc|free)\(' 'engine/alloc\.c|kernels/[a-z_]*\.c|engine/json\.c'
only_in '(^|[^a-zA-Z0-9_])assert\(' 'none'
only_in '#if(n?def)? .*CUDA' 'kernels/[a-z_/]*\.[ch]'

words='TO''DO|FIX''ME|XX''X|HA''CK|place''holder|not (yet )?imple''mented'
found=$(git grep -nIE "$words" -- . ':!*.json' ':!*.jsonl' ':!*.txt')
[ -z "$found" ] || fail "$found
words that must not stand in the tree"
found=$(git grep -nIE '(^|[^A-Za-z0-9_.$])/(work|root|home)/' -- . ':!*.json')
[ -z "$found" ] || fail "$found
paths of one machine"

for folder in kernels autograd engine analysis tests bench tools; do
    printf '%-10s %6d lines\n' "$folder" "$(git ls-files "$folder/*.c" "$folder/*.h" "$folder/*.cu" "$folder/*.cuh" "$folder/*.cpp" "$folder/*.py" "$folder/*.sh" | xargs -r cat | wc -l)"
done
exit $status
