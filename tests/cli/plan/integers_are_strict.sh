# SPDX-License-Identifier: Apache-2.0
for v in "" " 2" +2 -2 0x2 2.0 2e0 4294967296 99999999999999999999 two; do
    moe-convert plan fx/mixtral --ep "$v" --quiet
    echo "$v: $?"
done
