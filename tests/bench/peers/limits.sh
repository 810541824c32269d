#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# limits.sh FILE...   builds limits.c and prints this machine's limits as JSON lines.
# FILE: large files to read (a checkpoint's shards). BUILD: where the binary goes (default: a temporary folder).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
BUILD=${BUILD:-$(mktemp -d)}
mkdir -p "$BUILD"
${CC:-cc} -O3 -march=native -Wall -Wextra -o "$BUILD/limits" "$here/limits.c" -lcrypto -lpthread
L=$BUILD/limits
[ $# -gt 0 ] || exit 0
evict() { python3 -c 'import os,sys
for p in sys.argv[1:]:
    d = os.open(p, os.O_RDONLY); os.posix_fadvise(d, 0, 0, os.POSIX_FADV_DONTNEED)' "$@"; }
for rep in 1 2 3; do
    "$L" memory
    "$L" sha256
    for m in "uring 1 4096 16" "uring 1 1024 32" "direct 1 8192 1" "direct 2 8192 1" "direct 8 2048 1"; do
        evict "$@"; "$L" read "$1" $m
    done
    cat "$1" > /dev/null; "$L" read "$1" cold 1 4096 1
    cat "$1" > /dev/null; "$L" read "$1" cold 2 4096 1
    "$L" write "$(dirname "$1")/limits.tmp" 2147483648 uring 4096 16
    "$L" write "$(dirname "$1")/limits.tmp" 2147483648 buffered 4096 1
done
