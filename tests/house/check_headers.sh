#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Each public header compiles alone, as C11 and as C++17, without a warning.
#
# usage: [CC=cc] [CXX=c++] check_headers.sh [ROOT]
set -eu
cd "${1:-$(dirname "$0")/../..}"
CC=${CC:-cc}
CXX=${CXX:-c++}
flags='-Wall -Wextra -pedantic -Werror -fsyntax-only -Iloader/include'
status=0
n=0

has_cxx=1
command -v "$CXX" >/dev/null 2>&1 || has_cxx=0

for header in loader/include/moec/*.h; do
    n=$((n + 1))
    include="#include <moec/$(basename "$header")>"
    # Twice: the guard must hold.
    # shellcheck disable=SC2086 # a list of flags
    printf '%s\n%s\n' "$include" "$include" |
        "$CC" -std=c11 $flags -x c - || {
        echo "$header: not clean as C11"
        status=1
    }
    [ $has_cxx = 1 ] || continue
    # shellcheck disable=SC2086
    printf '%s\n%s\n' "$include" "$include" |
        "$CXX" -std=c++17 $flags -x c++ - || {
        echo "$header: not clean as C++17"
        status=1
    }
done
[ $n -gt 0 ] || status=1
echo "$n public headers"
if [ $status = 0 ] && [ $has_cxx = 0 ]; then
    echo "no C++ compiler ($CXX): only C11 was checked"
    exit 77
fi
exit $status
