#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The example server starts from a checkpoint and from a conversion, says when
# the first layer was there, and refuses a conversion for another world.
#
# usage: example.sh SERVE
set -u
serve=$1
root=${MOEC_ROOT:-$(cd "$(dirname "$0")/../.." && pwd)}
program=${MOEC_CONVERT:-$root/build/dev/moe-convert}
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
fixture=$root/fixtures/checkpoints/deepseek_v3_fp8

fail() {
    echo "$1"
    cat "$dir/out" "$dir/err"
    exit 1
}
run() { # CODE WORDS ARGS...
    want=$1 words=$2
    shift 2
    "$serve" "$@" >"$dir/out" 2>"$dir/err"
    code=$?
    [ $code -eq "$want" ] || fail "serve $*: exit $code, expected $want"
    cat "$dir/out" "$dir/err" | grep -q "$words" ||
        fail "serve $*: does not say '$words'"
}

run 0 'not verified; first after' "$fixture" 1 2
run 0 '100 %' "$fixture" 0 1
"$program" convert "$fixture" "$dir/out.ep2" --ep 2 --quiet || exit 1
run 0 ' verified; first after' "$dir/out.ep2" 1 2
run 1 'EP size: 2 on disk, the server wants 4' "$dir/out.ep2" 1 4
run 1 'rank 5 of 2' "$dir/out.ep2" 5 2
run 1 'cannot serve' "$dir/nothing" 0 1
run 2 usage "$fixture"
echo "example: 7 runs"
