#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A generated checkpoint of every family, in each of its formats, through
# inspect, plan, convert, verify --source, the independent layout check and
# back, compared byte for byte:
#
#   sh tests/cli/family_trees.sh [TREE ...]
#
# The trees are those of tests/support/make_family_trees.py, which knows the
# table of families and nothing of mapping/families. W is 1, 2 and 4, R is 0 or
# a multiple of W. Two trees run at a time.
#
# From the environment: MOEC_CONVERT, the program; MOEC_PYTHON, a python3:
# without one there are no trees, and the test is skipped.
set -u
LC_ALL=C
export LC_ALL
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
program=${MOEC_CONVERT:-$root/build/dev/moe-convert}
python=${MOEC_PYTHON:-$(command -v python3 || :)}
MOEC_CONVERT=$program MOEC_PYTHON=$python
export MOEC_CONVERT MOEC_PYTHON

fail() {
    echo "$name: $*"
    exit 1
}

# All that a conversion copies or converts must come back, and nothing else.
compare_back() {
    for path in "$src"/* back/*; do
        cmp "$src/${path##*/}" back/"${path##*/}" ||
            fail "$*: ${path##*/} is not as it was"
    done
}

one() { # OPTION...
    n=$((n + 1))
    "$program" plan "$src" "$@" --json --quiet >"plan$n" || fail "plan $*: $?"
    "$program" convert "$src" "out$n" "$@" --quiet || fail "convert $*: exit $?"
    "$program" verify "out$n" --source "$src" --quiet >found ||
        fail "verify $*: exit $?: $(tail -n 5 found)"
    "$program" unconvert "out$n" back --quiet || fail "unconvert $*: exit $?"
    compare_back "$@"
    rm -r back
    echo "out$n $*" >>checks
}

if [ "${1:-}" = --one ]; then
    src=$2 name=${2##*/} n=0
    mkdir "$src.work" && cd "$src.work" || exit 1
    "$program" inspect "$src" --json --quiet >inspect || fail "inspect: exit $?"
    one --ep 1 --redundant 0
    one --ep 2 --redundant 2
    one --ep 4 --redundant 0
    one --ep 2 --redundant 0 --w13-order up-gate
    rm -f found
    exit 0
fi

[ -x "$program" ] || {
    echo "no program at $program: build it, or set MOEC_CONVERT"
    exit 1
}
[ -n "$python" ] || {
    echo "no python3: no trees"
    exit 77
}

# Hundreds of small conversions wait for fsync and for nothing else: where
# memory has room, they go there.
[ -n "${TMPDIR:-}" ] || ! [ -w /dev/shm ] ||
    [ "$(df -Pk /dev/shm | awk 'NR == 2 { print $4 }')" -lt 1000000 ] ||
    TMPDIR=/dev/shm
[ -z "${TMPDIR:-}" ] || export TMPDIR
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM
began=$(date +%s)
"$python" "$root/tests/support/make_family_trees.py" "$scratch/trees" "$@" ||
    exit 1
mkdir -p "$scratch/trees"
n=$(ls "$scratch/trees" | wc -l)
[ "$n" -gt 0 ] || {
    echo "no tree is called $*"
    exit 1
}
for tree in "$scratch"/trees/*; do
    echo "$tree"
done | xargs -n 1 -P 2 sh "$here/family_trees.sh" --one
code=$?
"$python" "$here/check_family_trees.py" "$scratch/trees" \
    "$root/tests/checks" || code=1
echo "$n trees in $(($(date +%s) - began)) s"
[ $code -eq 0 ]
