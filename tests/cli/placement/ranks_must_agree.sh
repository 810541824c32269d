# SPDX-License-Identifier: Apache-2.0
# A file that says its ranks is for that many, in plan and convert too.
seeds=$(dirname "$0")/../../../fixtures/corpora/placement
for word in plan convert; do
    out=out
    [ $word = convert ] || out=
    moe-convert $word fx/deepseek_v3 $out --ep 8 --placement "$seeds/ascend.json" -q
    [ $? -eq 3 ] || exit 99
done
[ ! -e out ]
