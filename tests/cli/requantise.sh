#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# --requantize-shared: shared experts of another format in the routed one.
#
#   sh tests/cli/requantise.sh [TREE ...]
#
# Trees of make_family_trees.py with their shared experts made finite: the
# slots are what check_requantised.py makes of them in numpy; verify agrees,
# with the source and without; the source comes back byte for byte; several
# processes, and a conversion as the source, give the same. What cannot be
# requantised is refused; without the option nothing changes.
#
# From the environment: MOEC_CONVERT, the program; MOEC_PYTHON, a python3 with
# numpy: without one the test is skipped.
set -u
LC_ALL=C
export LC_ALL
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
program=${MOEC_CONVERT:-$root/build/dev/moe-convert}
python=${MOEC_PYTHON:-$(command -v python3 || :)}
[ -n "$python" ] && "$python" -c 'import numpy' 2>/dev/null || exit 77
[ -x "$program" ] || {
    echo "no program at $program: build it, or set MOEC_CONVERT"
    exit 1
}
[ -n "${TMPDIR:-}" ] || ! [ -w /dev/shm ] || TMPDIR=/dev/shm
[ -z "${TMPDIR:-}" ] || export TMPDIR
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM
cd "$scratch" || exit 1

fail() {
    echo "FAIL: ${tree:-}: $*"
    [ ! -f log ] || sed 's/^/log: /' log
    exit 1
}

run() { # COMMAND...
    "$program" "$@" >said 2>log || fail "$*: exit $?: $(tail -n 5 said)"
}

same() { # DIR DIR
    for path in "$1"/*; do
        [ "${path##*/}" = provenance.json ] ||
            cmp "$path" "$2/${path##*/}" || fail "$2 is not as $1"
    done
}

[ $# -gt 0 ] ||
    set -- deepseek_v4 deepseek_v4-mtp kimi_k2-int4 llama4-fp8 \
        deepseek_v2-fp8bf16
"$python" "$root/tests/support/make_family_trees.py" trees "$@" \
    kimi_k2-nvfp4 >log || exit 1

for tree; do
    src=trees/$tree
    "$python" "$here/check_requantised.py" finite "$src" || fail "not finite"
    for order in gate-up up-gate; do
        options="--ep 2 --redundant 2 --w13-order $order --requantize-shared"
        run convert "$src" out $options --memory 32MiB
        grep -q 'requantised shared down: max abs error' said ||
            fail "the error is not reported"
        grep -q '"requantised": {"gate": {"max_abs": [0-9]' \
            out/provenance.json || fail "no error in provenance.json"
        "$python" "$here/check_requantised.py" check "$src" out $order ||
            fail "other bytes"
        run verify out --source "$src"
        run verify out
        run unconvert out back
        same "$src" back
        [ $order = gate-up ] || break
        for rank in 1 0; do
            run convert "$src" many $options --ranks $rank
        done
        run finalize many
        same out many
        run convert out again $options # its own source's bytes are in it
        same out again
        run convert "$src" plain --ep 2 --redundant 2
        run convert out plain2 --ep 2 --redundant 2
        same plain plain2
        run verify plain2 --source "$src"
        ! grep -q requant plain/manifest.json || fail "without the option"
        rm -r out back many again plain plain2
    done
    run convert "$src" plain --ep 2
    if "$program" validate plain --source "$src" --quiet >said 2>log; then
        run validate out --source "$src" --json
        grep -q 'requantised: its output differs' said ||
            fail "validate does not say what the output loses"
    fi
    rm -r plain
    # A slot that is not what the quantiser makes is found.
    file=$(ls out/experts-rank-00001-*)
    printf '\125' | dd of="$file" bs=1 conv=notrunc status=none \
        seek=$(($(wc -c <"$file") / 2))
    "$program" verify out >said 2>log && fail "a changed slot is not found"
    rm -r out back
done

tree=kimi_k2-nvfp4
"$program" convert trees/$tree out --ep 2 --requantize-shared >said 2>log
[ $? -eq 3 ] && grep -q 'MOE-P10' log || fail "NVFP4 has no quantiser"
tree=${1:-}
"$program" convert "trees/$tree" out --ep 2 --requantize-shared \
    --shared-store common >said 2>log
[ $? -eq 3 ] && grep -q 'give one of them' log || fail "with a common store"
[ ! -e out ] && [ ! -e out.partial ] || fail "a refusal left something"
