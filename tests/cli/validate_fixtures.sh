#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Every fixture through convert and validate, against the reference answers
# that lie beside it:
#
#   sh tests/cli/validate_fixtures.sh [FIXTURE ...]
#
# W in {1, 2, 4} with and without redundancy, both orders of w13, shared slots
# numbered once and kept apart, an expert store, empty slots; every back end of
# this CPU. Then two slots' bytes are exchanged in a file, and validate must
# name the slots.
#
# From the environment: MOEC_CONVERT, the program; MOEC_PYTHON, a python3 to
# exchange the slots (without one that is left out, and the last line says so).
set -u
LC_ALL=C
export LC_ALL
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
program=${MOEC_CONVERT:-$root/build/dev/moe-convert}
python=${MOEC_PYTHON:-$(command -v python3 || :)}

fail() {
    echo "$name: $*"
    exit 1
}

one() { # OPTION...
    rm -rf out
    "$program" convert "$src" out "$@" --quiet 2>said || {
        grep -q MOE-P06 said && return 0 # does not divide
        fail "convert $*: $(cat said)"
    }
    # shellcheck disable=SC2086 # words
    "$program" validate out --source "$src" $cpu \
        --golden "$src/golden.safetensors" --strict >found 2>&1 ||
        fail "validate $* $cpu: exit $?: $(cat found)"
    n=$(grep -c "^layer .* ok .*; reference within" found)
    [ "$n" -eq "$(grep -c ^layer found)" ] && [ "$n" -gt 0 ] ||
        fail "validate $* $cpu: $(cat found)"
}

# Exchange the bytes of two rows of a rank's w13 in its file.
swapped() {
    [ -n "$python" ] || return 0
    rm -rf out
    "$program" convert "$src" out --ep 2 --redundant 2 --quiet ||
        fail "convert: exit $?"
    "$python" - out <<'PYTHON' || fail "python"
import glob, json, struct, sys
path = sorted(glob.glob(sys.argv[1] + "/experts-rank-00001-*"))[0]
f = open(path, "r+b")
n = struct.unpack("<Q", f.read(8))[0]
head = json.loads(f.read(n))
for suffix in ("w13_weight", "w2_weight"):
    name = min(k for k in head if k.endswith(suffix))
    begin, end = head[name]["data_offsets"]
    rows = head[name]["shape"][0]
    size = (end - begin) // rows
    f.seek(8 + n + begin)
    a, b = f.read(size), f.read(size)
    f.seek(8 + n + begin)
    f.write(b + a)
PYTHON
    "$program" validate out --source "$src" >found 2>&1
    [ $? -eq 1 ] || fail "swapped slots: exit not 1: $(cat found)"
    grep -q "MOE-K03.*rank 1, slot 0, expert" found &&
        grep -q "MOE-K03.*rank 1, slot 1, expert" found ||
        fail "swapped slots are not named: $(cat found)"
}

[ -n "${TMPDIR:-}" ] || [ ! -w /dev/shm ] || TMPDIR=/dev/shm
[ -z "${TMPDIR:-}" ] || export TMPDIR
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM
cd "$scratch" || exit 1
backs=scalar
for back in avx2 avx512; do
    "$program" selftest --cpu $back >selftest 2>&1 && backs="$backs $back"
done
# shellcheck disable=SC2046 # a list of words
[ $# -gt 0 ] || set -- $(ls "$root/fixtures/checkpoints")
for name; do
    src=$root/fixtures/checkpoints/$name
    cpu=
    for w in 1 2 4; do
        one --ep $w
        one --ep $w --redundant 4 --w13-order up-gate
    done
    one --ep 2 --redundant 2
    one --ep 2 --redundant 2 --shared-slots none
    grep -q '"S": 0' "$src/experts.json" ||
        one --ep 2 --redundant 2 --shared-slots global
    one --ep 2 --shared-store common
    one --shard-by expert
    one --ep 3 --allow-empty
    for back in $backs; do
        cpu="--cpu $back"
        one --ep 2 --redundant 2
    done
    swapped
done
[ -n "$python" ] || echo "no python: swapped slots were left out"
echo "ok: $# fixtures, back ends: $backs"
