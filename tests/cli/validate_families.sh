#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A generated checkpoint of every family, in each of its formats, through
# convert and validate: the source's side reads names, orientation and formats
# on a road of its own, so that both sides must understand every format alike.
#
#   sh tests/cli/validate_families.sh [TREE ...]
#
# Families whose router is not implemented must say so, and only those. Of
# formats with other scales and biases than the fixtures', each mutation that
# can be made must be found.
#
# From the environment: MOEC_CONVERT, the program; MOEC_PYTHON, a python3 with
# numpy: without one there are no numbers, and the test is skipped.
set -u
LC_ALL=C
export LC_ALL
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
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
"$python" "$root/tests/support/make_family_trees.py" trees "$@" >/dev/null &&
    "$python" "$root/tests/support/settle_trees.py" trees/* || exit 1
bad=0 run=0 not=0
for src in trees/*; do
    name=${src##*/}
    rm -rf out
    "$program" convert "$src" out --ep 2 --redundant 2 --quiet 2>said ||
        "$program" convert "$src" out --ep 1 --quiet 2>said || {
        echo "$name: convert: $(cat said)"
        bad=$((bad + 1))
        continue
    }
    "$program" validate out --source "$src" >found 2>&1
    code=$?
    if [ $code -eq 0 ] && grep -q "^out: validated" found; then
        run=$((run + 1))
        case $name in
        kimi_k2-int4 | hunyuan_moe-fp8 | gpt_oss)
            # Without copies only what experts compute tells.
            rm -rf out
            "$program" convert "$src" out --ep 2 --quiet
            "$program" check out --source "$src" --level kernels \
                --mutate all --quiet >found 2>&1
            [ $? -eq 1 ] || {
                echo "$name: $(grep 'NOT FOUND' found)"
                bad=$((bad + 1))
            }
            ;;
        esac
    elif [ $code -eq 0 ] && grep -q "MOE-K09" found; then
        echo "$name: $(grep MOE-K09 found)"
        not=$((not + 1))
        case $name in
        minimax_text_01-shared) ;;
        *) bad=$((bad + 1)) ;;
        esac
        "$program" validate out --source "$src" --strict >/dev/null 2>&1
        [ $? -eq 1 ] || bad=$((bad + 1))
    else
        echo "$name: exit $code: $(head -n 20 found)"
        bad=$((bad + 1))
    fi
done
echo "$run validated, $not not implemented, $bad bad"
[ $bad -eq 0 ] && [ $run -gt 0 ]
