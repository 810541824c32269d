#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The checks of the house can fail: each is run over a small tree with one
# defect and must name the file and the line.
set -eu
house=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
status=0
spdx='/* SPDX-License-Identifier: Apache-2.0 */'

fresh() {
    rm -rf "$dir/tree"
    mkdir -p "$dir/tree/loader/include/moec" "$dir/tree/loader/base" \
        "$dir/tree/mapping" "$dir/tree/convert/cli" "$dir/tree/tests"
    printf '%s\n' "$spdx" >"$dir/tree/loader/include/moec/types.h"
    printf '%s\n' "$spdx" >"$dir/tree/loader/base/base.h"
    printf '%s\n' "$spdx" >"$dir/tree/loader/ckpt.h"
    printf '%s\n' "$spdx" '#include "ckpt.h"' '#include <moec/types.h>' \
        >"$dir/tree/mapping/plan.c"
}
add() { # FILE LINE...
    file=$dir/tree/$1
    shift
    printf '%s\n' "$spdx" "$@" >"$file"
}
expect() { # CHECK PATTERN
    if sh "$house/$1" "$dir/tree" >"$dir/out" 2>&1; then
        echo "$1 accepts what it must refuse: $2"
        status=1
    elif ! grep -q "$2" "$dir/out"; then
        echo "$1 refuses, but does not say: $2"
        cat "$dir/out"
        status=1
    fi
}
accept() { # CHECK
    if ! sh "$house/$1" "$dir/tree" >"$dir/out" 2>&1; then
        echo "$1 refuses a good tree:"
        cat "$dir/out"
        status=1
    fi
}

fresh
accept check_includes.sh
accept check_names.sh

fresh
add loader/base/up.c '' '#include "ckpt.h"'
expect check_includes.sh '^loader/base/up.c:3: .*above this file'
fresh
add convert/cli/main.c '#include "base/base.h"'
expect check_includes.sh '^convert/cli/main.c:2: convert/cli sees'
fresh
add loader/ckpt.c '#include <openssl/evp.h>'
expect check_includes.sh '^loader/ckpt.c:2: <openssl/evp.h>'
fresh
add loader/index.c '#  include <jansson.h>'
expect check_includes.sh '^loader/index.c:2: <jansson.h>'
fresh
add mapping/plan.c '#include <yaml.h>'
expect check_includes.sh '^mapping/plan.c:2: <yaml.h>'
fresh
add tests/test_plan.c '#include "plan.c"'
expect check_includes.sh '^tests/test_plan.c:2: includes a .c'
fresh
add mapping/lost.c '#include "lost.h"'
expect check_includes.sh '^mapping/lost.c:2: .*no header'
fresh
add loader/include/moec/new.h ''
add mapping/uses_new.c '#include <moec/new.h>'
expect check_includes.sh '^mapping/uses_new.c:2: give .* a level'

fresh
add loader/plan.c ''
expect check_names.sh '^mapping/plan.c: has the name of loader/plan.c'
fresh
printf '#include <stdio.h>\n' >"$dir/tree/mapping/bare.c"
expect check_names.sh '^mapping/bare.c: no SPDX'
fresh
add mapping/paths.c "/* /hom""e/someone/model */"
expect check_names.sh '^mapping/paths.c:2: names a path'

fresh
add loader/include/moec/loose.h 'int f(undeclared x);'
expect check_headers.sh '^loader/include/moec/loose.h: not clean as C11'
exit $status
