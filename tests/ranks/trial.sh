# Sourced by tests of the program on ranks: NAME.sh BUILD_FOLDER SOURCE_FOLDER HOW. They work in a folder of their own, which
# goes with them; fail says what went wrong and lets the rest run, `exit $status` is their last line.
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/mpi.sh"
build=$(readlink -f "$1") source=$(readlink -f "$2") how=$3 status=0
program=$build/gatetape
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
fail() {
    echo "WRONG: $1"
    status=1
}
cd "$folder" || exit 1
