#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# clang-format 14 changes nothing. Other versions lay out a few things in
# other ways, so with none or another one this is skipped (77).
#
# usage: check_format.sh [--fix]
set -eu
cd "$(dirname "$0")/../.."
out=$(mktemp)
trap 'rm -f "$out"' EXIT

tool=
for candidate in clang-format-14 clang-format; do
    if "$candidate" --version 2>/dev/null | grep -q 'version 14\.'; then
        tool=$candidate
        break
    fi
done
if [ -z "$tool" ]; then
    echo "clang-format 14 is not installed: skipped"
    exit 77
fi

dirs=
for d in loader mapping validate load store convert kernels tests; do
    [ ! -d "$d" ] || dirs="$dirs $d"
done
# The peers' harness came as it is.
# shellcheck disable=SC2086 # a list of words
files=$(find $dirs -path tests/bench/peers -prune -o \
    -name '*.[ch]' -type f -print | LC_ALL=C sort)

# shellcheck disable=SC2086 # the names have no blanks
if [ "${1:-}" = --fix ]; then
    "$tool" -i $files
    exit 0
fi
# shellcheck disable=SC2086
"$tool" --dry-run -Werror $files >"$out" 2>&1 || :
sed -n 's/^\([^ ]*:[0-9]*\):[0-9]*: error: .*/\1: clang-format differs/p' \
    "$out" | uniq
if [ -s "$out" ]; then
    echo "sh tests/house/check_format.sh --fix mends them"
    exit 1
fi
