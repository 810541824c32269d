#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The archive of a commit is the same bytes whoever makes it: another umask,
# another git configuration, another time zone.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
dist=$root/loader/package/dist.sh
if ! command -v git >/dev/null 2>&1; then
    echo "no git: skipped"
    exit 77
fi
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/one" "$dir/two" "$dir/home"
git init -q "$dir/tree"
cd "$dir/tree"
cp "$root/.gitattributes" .
echo text >file
cp "$dist" script
git add .
git -c user.name=a -c user.email=a@b -c commit.gpgSign=false commit -q -m first
sh "$dist" HEAD "$dir/one/moec.tar.gz"
printf '[tar]\n\tumask = user\n[core]\n\tautocrlf = true\n' >"$dir/home/.gitconfig"
(
    HOME=$dir/home TZ=Asia/Tokyo
    export HOME TZ
    umask 077
    sh "$dist" HEAD "$dir/two/moec.tar.gz"
)
cmp "$dir/one/moec.tar.gz" "$dir/two/moec.tar.gz"
