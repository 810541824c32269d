#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# File names are unique across the tree, so that a name in a message or in a
# review means one file; every source says its licence; and nothing names a
# path of the machine that it was written on. Findings are "FILE[:LINE]: ...".
#
# usage: check_names.sh [ROOT]
set -eu
cd "${1:-$(dirname "$0")/../..}"
status=0
out=$(mktemp)
trap 'rm -f "$out"' EXIT

# Not through git: a tree unpacked from an archive has to pass as well.
files() {
    find . \( -path ./.git -o -path ./.cache -o -path './build*' \
        -o -name __pycache__ \) -prune -o -type f "$@" -print |
        sed 's,^\./,,' | LC_ALL=C sort
}
report() {
    if [ -s "$out" ]; then
        cat "$out"
        status=1
    fi
}

# Sources only: fixtures repeat config.json, and a CLI case is named by its
# command's directory as well; each kind of tests has its run.sh.
files \( -name '*.[ch]' -o -name '*.cu' -o -name '*.py' -o -name '*.sh' \
    -o -name '*.cmake' -o -name '*.map' -o -name '*.def' \) |
    grep -v -e '^tests/cli/[^/]*/' -e '^tests/[^/]*/run.sh$' |
    awk '{
        name = $0
        sub(/.*\//, "", name)
        if (name in first)
            print $0 ": has the name of " first[name]
        else
            first[name] = $0
    }' >"$out"
report

files \( -name '*.[ch]' -o -name '*.cu' -o -name '*.py' -o -name '*.sh' \
    -o -name '*.def' -o -name '*.cmake' -o -name CMakeLists.txt \) |
    xargs awk '
        FNR == 1 { said[FILENAME] = 0 }
        FNR <= 3 && /SPDX-License-Identifier: / { said[FILENAME] = 1 }
        END {
            for (file in said)
                if (!said[file])
                    print file ": no SPDX-License-Identifier in its first" \
                        " three lines"
        }' >"$out"
report

# The brackets keep these lines from finding themselves. A home directory is
# one with a name behind it.
files ! -name '*.safetensors' ! -path './fixtures/corpora/*' |
    xargs grep -InHE -e '(^|[^A-Za-z0-9_.~-])/(wor[k]|hom[e]/[a-z]|roo[t]/)' \
        -e '\.\./share[d]/' |
    sed 's/^\([^:]*:[0-9]*\):\(.\{0,120\}\).*/\1: names a path of one machine: \2/' \
        >"$out" || :
report

exit $status
