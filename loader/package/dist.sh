#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The source of a commit as FILE.tar.gz: the same bytes on every machine. Names,
# owners and times are git's, modes not what the user's tar.umask says; gzip
# writes neither a name nor a time.
#
# usage: dist.sh COMMIT FILE.tar.gz
set -eu
file=$2
name=$(basename "$file" .tar.gz)
trap 'rm -f "$file.tmp"' EXIT
git -c tar.umask=0002 archive --format=tar --prefix="$name/" "$1" >"$file.tmp"
gzip -9 -n -c "$file.tmp" >"$file"
