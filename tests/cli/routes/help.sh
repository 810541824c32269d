# SPDX-License-Identifier: Apache-2.0
for c in import export check merge; do
    moe-convert routes $c --help || exit
done
