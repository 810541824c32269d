# SPDX-License-Identifier: Apache-2.0
# One line a family, in both forms the same.
moe-convert inspect --list-families | grep -x deepseek_v3
moe-convert inspect --list-families | LC_ALL=C sort >text
moe-convert inspect --list-families --json |
    sed -n "s/^    \"\([a-z0-9_]*\)\",*$/\1/p" | LC_ALL=C sort | cmp - text
