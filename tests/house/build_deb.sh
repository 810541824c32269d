#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The Debian packages of HEAD: source and binary ones by dpkg-buildpackage,
# then lintian, which must find nothing. Minutes: no test of every day.
#
#   cmake --build build/dev --target deb
#
# usage: build_deb.sh [DIRECTORY FOR THE PACKAGES]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
for tool in dpkg-buildpackage dh lintian git; do
    if ! command -v $tool >/dev/null 2>&1; then
        echo "no $tool (apt-get install build-essential debhelper lintian" \
            "git): skipped"
        exit 77
    fi
done
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$root"
version=$(sed -n '1s/.*(\(.*\)-[^-]*).*/\1/p' debian/changelog)
# The archive that upstream would publish.
sh loader/package/dist.sh HEAD "$dir/moec-$version.tar.gz"
cd "$dir"
tar -xzf "moec-$version.tar.gz"
rm -r "moec-$version/debian"
tar -czf "moec_$version.orig.tar.gz" "moec-$version"
git -C "$root" archive HEAD debian | tar -x -C "moec-$version"
(cd "moec-$version" && dpkg-buildpackage -us -uc >"$dir/log" 2>&1) || {
    tail -n 60 "$dir/log"
    exit 1
}
ls -l ./*.deb ./*.dsc
# A first upload closes the bug of its intent to package; there is none.
lintian --fail-on error,warning --suppress-tags initial-upload-closes-no-bugs \
    --tag-display-limit 0 ./*.changes
dpkg-deb -c ./moe-convert_*.deb >list
for name in usr/bin/moe-convert usr/share/man/man1/moe-convert-check.1.gz \
    usr/share/bash-completion/completions/moe-convert; do
    grep -q "$name$" list || {
        echo "moe-convert has no $name"
        exit 1
    }
done
# The program runs as it lies in its package.
dpkg-deb -x ./moe-convert_*.deb installed
installed/usr/bin/moe-convert --version
if [ $# -gt 0 ]; then
    cp ./*.deb ./*.dsc ./*.tar.* ./*.changes "$1"
fi
