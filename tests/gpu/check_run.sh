#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check_run.sh BUILD: does run.sh do what it says, on a machine without a card?
# With none it exits 77 and says so; over the emulated plug-in it goes its whole
# way and marks its table; a test or a benchmark that fails fails it.
set -eu
build=$1
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

die() {
    echo "check_run: $*" >&2
    cat "$dir/said" >&2
    exit 1
}
# run STATUS OPTION...: run.sh ends with it
run() {
    want=$1 status=0
    shift
    sh "$here/run.sh" "$@" >"$dir/said" 2>&1 || status=$?
    [ $status = "$want" ] || die "run.sh $*: status $status, not $want"
}
says() {
    grep -qe "$1" "$2" || die "no '$1' in $2"
}

CUDA_VISIBLE_DEVICES='' run 77
says 'no CUDA device' "$dir/said"
run 2 --emulated
run 2 --what

export MOEC_GPU_TESTS='test_device test_device_permute test_device_none'
run 0 --emulated --build "$build" --out "$dir/table.md"
says 'emulated.*no timing' "$dir/table.md"
says 'test_device: [1-9][0-9]* tests passed' "$dir/table.md"
says 'load, cached file to device' "$dir/table.md"
says 'GPUDirect Storage: skipped, no cuFile: .' "$dir/table.md"
says 'test_device_none: left out' "$dir/table.md"
says 'compute-sanitizer: left out' "$dir/table.md"
says 'peers: left out' "$dir/table.md"
if command -v python3 >/dev/null; then
    says '^| top-k | 256/8 T=128 | ran, not timed | 2.2 us' "$dir/table.md"
    says '^| FFN fp8 | DeepSeek-V3 T=16 | ran, not timed' "$dir/table.md"
    ! grep -q 'ERROR' "$dir/table.md" || die 'an error in the table'
fi

# A tree of programs that fail.
mkdir -p "$dir/bad/tests"
: >"$dir/bad/tests/libmoec_cuda_emulated.so"
printf '#!/bin/sh\necho "[  FAILED  ] it"\nexit 1\n' \
    >"$dir/bad/tests/test_device"
printf '#!/bin/sh\necho broken >&2\nexit 1\n' \
    >"$dir/bad/tests/bench_device_emulated"
chmod +x "$dir"/bad/tests/*device*
MOEC_GPU_TESTS=test_device
run 1 --emulated --build "$dir/bad" --out "$dir/bad.md"
says 'FAILED: test_device: status 1' "$dir/bad.md"
says 'FAILED: bench_device: status 1: broken' "$dir/bad.md" # it went on
printf '#!/bin/sh\nexit 0\n' >"$dir/bad/tests/test_device"
run 1 --emulated --build "$dir/bad" --out "$dir/bad.md"
says 'FAILED: bench_device: status 1: broken' "$dir/bad.md"
printf '#!/bin/sh\nsleep 30\n' >"$dir/bad/tests/test_device"
MOEC_GPU_SECONDS=5 run 1 --emulated --build "$dir/bad" --out "$dir/bad.md"
says 'FAILED: test_device: not done in its time' "$dir/bad.md"
