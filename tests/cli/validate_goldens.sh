#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Routers that no fixture has, against answers that were computed from their
# formulas alone (tests/support/make_family_goldens.py): zero experts, hash
# tables, the sparse mixer, a softcap, the joint sum, scales on the sum.
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

# Every layer that has answers must have been compared with all of them.
compare() { # TREE WHAT
    "$program" validate out --source "$1" --golden "$1/golden.safetensors" \
        --strict >found 2>&1 || {
        echo "${1##*/}, $2: exit $?: $(head -n 20 found)"
        return 1
    }
    n=$(grep -c "^layer .* ok .*; reference within" found)
    [ "$n" -gt 0 ] && ! grep -q MOE-K09 found || {
        echo "${1##*/}, $2: $(head -n 20 found)"
        return 1
    }
}

# One number of an answer made wrong must be found.
bend() { # TREE ANSWER
    "$python" - "$1/golden.safetensors" "$2" <<'PYTHON'
import json, struct, sys
f = open(sys.argv[1], "r+b")
n = struct.unpack("<Q", f.read(8))[0]
head = json.loads(f.read(n))
name = min(k for k in head if k.endswith(".t64." + sys.argv[2]))
at = 8 + n + head[name]["data_offsets"][1] - 4
f.seek(at)
v = struct.unpack("<f", f.read(4))[0]
f.seek(at)
f.write(struct.pack("<f", v + 0.01 + abs(v) / 8))
PYTHON
    "$program" validate out --source "$1" --golden "$1/golden.safetensors" \
        >found 2>&1
    [ $? -eq 1 ] && grep -q "MOE-K07.*$2" found && return 0
    echo "${1##*/}: a wrong $2 is not found: $(head -n 5 found)"
    return 1
}

[ $# -gt 0 ] || set -- $("$python" "$support/make_family_goldens.py" --list)
"$python" "$support/make_family_trees.py" trees "$@" >/dev/null || exit 1
bad=0
for name; do
    src=trees/$name
    "$python" "$support/settle_trees.py" "$src" || exit 1
    rm -rf out
    "$program" convert "$src" out --ep 2 --redundant 2 --quiet 2>said || {
        echo "$name: convert: $(cat said)"
        bad=$((bad + 1))
        continue
    }
    "$python" "$support/make_family_goldens.py" "$src" || exit 1
    compare "$src" "tokens and scaled weights" || bad=$((bad + 1))
    "$python" "$support/make_family_goldens.py" --no-tokens \
        --weights-of-block "$src" || exit 1
    compare "$src" "no tokens, weights of the block" || bad=$((bad + 1))
    for answer in topk_weights output; do
        bend "$src" "$answer" || bad=$((bad + 1))
    done
done
echo "$# families, $bad bad"
[ $bad -eq 0 ]
