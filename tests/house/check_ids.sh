#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The four id spaces of types.h must not convert into each other silently.
# Each case is one function body that compiles as it stands and must not
# compile with the wrong id in its place (-DWRONG), so that a case cannot fail
# for a reason of its own.
#
# usage: check_ids.sh [SOURCE_DIR]     (CC: the compiler, default cc)

set -eu
root=${1:-$(dirname "$0")/../..}
cc=${CC:-cc}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT INT TERM
n=0
bad=0

compile() {
    "$cc" -std=c17 -Wall -Wextra -Werror -fsyntax-only \
        -I"$root/loader/include" "$@" "$dir/case.c" >"$dir/log" 2>&1
}

# try NAME RIGHT WRONG: an expression that is right and one that is wrong.
try() {
    n=$((n + 1))
    cat >"$dir/case.c" <<END
#include <moec/types.h>
#ifdef WRONG
#  define VALUE $3
#else
#  define VALUE $2
#endif
unsigned use(moec_topology t, moec_logical_id logical,
             moec_physical_id physical, moec_slot_id slot,
             moec_local_row row);
unsigned use(moec_topology t, moec_logical_id logical,
             moec_physical_id physical, moec_slot_id slot,
             moec_local_row row)
{
    static const unsigned table[4] = {0, 1, 2, 3};
    (void)t, (void)logical, (void)physical, (void)slot, (void)row;
    (void)table;
    $4
}
END
    if ! compile; then
        echo "$1: the right form does not compile:"
        cat "$dir/log"
        bad=1
    fi
    if compile -DWRONG; then
        echo "$1: '$3' compiles where '$2' is meant"
        bad=1
    fi
}

call='return moec_physical_slot(t, VALUE).v;'
try slot-of-logical physical logical "$call"
try slot-of-slot physical slot "$call"
try slot-of-row physical row "$call"
try slot-of-number physical 7u "$call"
try rank-of-slot physical slot 'return moec_physical_rank(t, VALUE);'
try rank-of-logical physical logical 'return moec_physical_rank(t, VALUE);'
try local-of-slot physical slot 'return moec_physical_local(t, VALUE).v;'
try physical-of-local row physical \
    'return moec_local_physical(t, 0, VALUE).v;'
try physical-of-slot row slot 'return moec_local_physical(t, 0, VALUE).v;'
try logical-is-physical logical physical \
    'moec_logical_id x = VALUE; return x.v;'
try physical-is-slot physical slot 'moec_physical_id x = VALUE; return x.v;'
try slot-is-physical slot physical 'moec_slot_id x = VALUE; return x.v;'
try row-is-slot row slot 'moec_local_row x = VALUE; return x.v;'
try row-is-number row 3u 'moec_local_row x = VALUE; return x.v;'
try number-is-logical logical.v logical 'return VALUE;'
try number-is-slot slot.v slot 'return VALUE;'
try add-to-physical physical.v physical 'return VALUE + 1u;'
try compare-spaces physical.v physical 'return slot.v == VALUE;'
try index-by-logical logical.v logical 'return table[VALUE];'
try result-is-slot 'moec_physical_slot(t, physical)' \
    'moec_physical_local(t, physical)' 'moec_slot_id x = VALUE; return x.v;'
try shared-is-physical 'moec_shared_slot(t, 0, 0)' \
    'moec_local_physical(t, 0, row)' 'moec_slot_id x = VALUE; return x.v;'

[ "$bad" = 0 ] || exit 1
echo "$n conversions refused"
