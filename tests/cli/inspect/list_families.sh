# SPDX-License-Identifier: Apache-2.0
# One line a family with what it was tried on, in both forms the same.
moe-convert inspect --list-families >lines
grep '^deepseek_v3 ' lines
grep '^nemotron_h ' lines
sed 's/ .*//' lines | LC_ALL=C sort >text
moe-convert inspect --list-families --json >json
sed -n "s/^    \"\([a-z0-9_]*\)\",*$/\1/p" json | LC_ALL=C sort | cmp - text
sed -n "s/^    \"\([a-z0-9_]*\)\": \"fixture\",*$/\1/p" json
