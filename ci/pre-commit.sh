#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A pre-commit hook: proves the layout of every checkpoint that a commit
# touches, from headers alone.
#
# usage: pre-commit.sh [OPTION OF check... --] FILE...
#
# From the environment: MOEC_PROGRAM, moe-convert where it is not in the PATH.
set -eu
program=${MOEC_PROGRAM:-moe-convert}
if ! command -v "$program" >/dev/null 2>&1; then
    echo "$program: no such program: install moe-convert" >&2
    exit 1
fi

# Options are given to each run; the parser wants to see them word by word.
n_options=0
seen=0
for word; do
    if [ "$word" = -- ]; then
        seen=1
        break
    fi
    n_options=$((n_options + 1))
done
[ $seen = 1 ] || n_options=0

status=0
done_dirs='
'
i=0
for file; do
    i=$((i + 1))
    if [ $seen = 1 ] && [ $i -le $((n_options + 1)) ]; then
        continue
    fi
    dir=$(dirname -- "$file")
    case $done_dirs in
    *"
$dir
"*) continue ;;
    esac
    done_dirs="$done_dirs$dir
"
    # A file alone (a config of something else) is no checkpoint.
    if [ ! -e "$dir/manifest.json" ] &&
        ! ls "$dir"/*.safetensors >/dev/null 2>&1; then
        continue
    fi
    (
        k=0
        for word; do
            k=$((k + 1))
            shift
            [ $k -gt $n_options ] || set -- "$@" "$word"
        done
        "$program" check --level headers --quiet "$@" -- "$dir"
    ) || status=1
done
exit $status
