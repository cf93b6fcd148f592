# Sourced by tests of the program: test_NAME.sh PROGRAM SOURCE_FOLDER. They work in a folder of their own, which goes with
# them; fail says what went wrong and lets the rest run, `exit $status` is their last line.
set -uo pipefail
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # threads that spin where cores are shared take minutes
program=$1 source=$2 status=0
demo=$source/configs/demo
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
fail() {
    echo "FAILED: $1"
    status=1
}
cd "$folder" || exit 1
