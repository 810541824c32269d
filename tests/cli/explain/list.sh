# SPDX-License-Identifier: Apache-2.0
# Every rule of the table, each on its line, in both forms.
rules=$(dirname "$0")/../../../loader/include/moec/rules.def
sed -n "s/^MOEC_RULE(\([A-Z][0-9]*\), \"\([a-z0-9-]*\)\".*/MOE-\1 \2/p" "$rules" >want
[ -s want ] || exit 99
moe-convert explain --list | awk "{print \$1, \$2}" >got
cmp want got || exit 98
moe-convert explain --list --json |
    sed -n "s/.*\"rule\": \"\([^\"]*\)\".*/\1/p" >got
cut -d" " -f1 want | cmp - got
