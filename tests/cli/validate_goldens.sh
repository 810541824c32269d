#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Routers that no fixture has, against answers that were computed from their
# formulas alone (tests/support/make_family_goldens.py): zero experts, hash
# tables, the sparse mixer, a softcap, the joint sum, scales on the sum. And
# integers packed as GPTQ and AWQ have them (make_packed_goldens.py).
#
#   sh tests/cli/validate_goldens.sh [TREE ...]
#
# From the environment: MOEC_CONVERT, the program; MOEC_PYTHON, a python3 with
# numpy: without one the test is skipped.
set -u
LC_ALL=C
export LC_ALL
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
support=$root/tests/support
program=${MOEC_CONVERT:-$root/build/dev/moe-convert}
python=${MOEC_PYTHON:-$(command -v python3 || :)}

"${python:-false}" -c "import numpy" 2>/dev/null || {
    echo "skipped: no python3 with numpy"
    exit 77
}
[ -n "${TMPDIR:-}" ] || [ ! -w /dev/shm ] || TMPDIR=/dev/shm
[ -z "${TMPDIR:-}" ] || export TMPDIR
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM
cd "$scratch" || exit 1

# All layers must have been compared, and be as the reference has them.
compare() { # TREE GOLDEN
    "$program" validate out --source "trees/$1" --golden "trees/$1/$2" \
        --strict >found 2>&1 &&
        grep -q "^layer .* ok .*; reference within" found && return 0
    echo "$1, $2: $(head -n 20 found)"
    return 1
}

# One number of an answer is wrong, and must be found.
find_wrong() { # TREE ANSWER
    "$program" validate out --source "trees/$1" \
        --golden "trees/$1/golden-$2.safetensors" >found 2>&1
    [ $? -eq 1 ] && grep -q "MOE-K07.*$2" found && return 0
    echo "$1: a wrong $2 is not found: $(head -n 5 found)"
    return 1
}

packed=
[ $# -gt 0 ] || {
    packed="mixtral-gptq mixtral-awq"
    # shellcheck disable=SC2046 # words
    set -- $("$python" "$support/make_family_goldens.py" --list)
}
"$python" "$support/make_family_trees.py" trees "$@" >/dev/null || exit 1
names=
for name; do
    names="$names trees/$name"
done
# shellcheck disable=SC2086 # words
"$python" "$support/settle_trees.py" $names &&
    "$python" "$support/make_family_goldens.py" $names || exit 1
[ -z "$packed" ] ||
    "$python" "$support/make_packed_goldens.py" trees || exit 1
bad=0
for name in "$@" $packed; do
    rm -rf out
    "$program" convert "trees/$name" out --ep 2 --redundant 2 --quiet \
        2>said || {
        echo "$name: convert: $(cat said)"
        bad=$((bad + 1))
        continue
    }
    compare "$name" golden.safetensors || bad=$((bad + 1))
    [ -f "trees/$name/golden-block.safetensors" ] || continue
    compare "$name" golden-block.safetensors || bad=$((bad + 1))
    find_wrong "$name" topk_weights || bad=$((bad + 1))
    find_wrong "$name" output || bad=$((bad + 1))
done
echo "$# families, $bad bad"
[ $bad -eq 0 ]
