#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Three lists are one: the MOEC_API declarations of the public headers, the
# names in libmoec.map, and what libmoec.so exports.
#
# usage: check_symbols.sh LIBMOEC.SO [ROOT]
set -eu
lib=$1
root=${2:-$(dirname "$0")/../..}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

# The last word before the parameter list (or the semicolon) is the name.
awk '
/^[ \t]*#/ { next }
/MOEC_API/ { text = ""; on = 1 }
on { text = text " " $0 }
on && /;/ {
    sub(/^.*MOEC_API/, "", text)
    sub(/[ \t]*[(;].*/, "", text)
    n = split(text, word, /[ \t*]+/)
    print word[n]
    on = 0
}' "$root"/loader/include/moec/*.h | LC_ALL=C sort >"$dir/headers"

map=$root/loader/package/libmoec.map
sed -n 's/^ *\(moec_[a-z0-9_]*\);$/\1/p' "$map" | LC_ALL=C sort >"$dir/map"

nm -D --defined-only "$lib" | awk '$2 != "A" { print $3 }' |
    sed 's/@.*//' | LC_ALL=C sort >"$dir/exported"

status=0
compare() { # LEFT RIGHT LEFT_TEXT RIGHT_TEXT
    comm -23 "$dir/$1" "$dir/$2" | while read -r name; do
        echo "$name: $3, but not $4"
    done >"$dir/out"
    if [ -s "$dir/out" ]; then
        cat "$dir/out"
        status=1
    fi
}
compare headers map 'MOEC_API in a public header' 'in libmoec.map'
compare map headers 'in libmoec.map' 'MOEC_API in a public header'
compare headers exported 'MOEC_API in a public header' 'exported by the library'
compare exported headers 'exported by the library' 'MOEC_API in a public header'
uniq -d "$dir/map" | sed 's/$/: twice in libmoec.map/' >"$dir/out"
if [ -s "$dir/out" ]; then
    cat "$dir/out"
    status=1
fi

# The version node says which ABI: MOEC_0.<minor> below 1.0.
version() {
    sed -n "s/^#define MOEC_VERSION_$1 //p" \
        "$root/loader/include/moec/version.h"
}
node=MOEC_$(version MAJOR)
[ "$(version MAJOR)" != 0 ] || node=$node.$(version MINOR)
if ! grep -q "^$node {" "$map"; then
    echo "$map: no version node $node, which version.h demands"
    status=1
fi

n=$(wc -l <"$dir/headers")
if [ "$n" -eq 0 ]; then
    echo "found no MOEC_API declaration"
    status=1
fi
echo "$n public functions"
exit $status
