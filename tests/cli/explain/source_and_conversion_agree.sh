# SPDX-License-Identifier: Apache-2.0
# What explain says of a conversion, whose source is gone, is what it says of
# the source: the same stretches with the same digests, rebuilt out of slots.
for d in deepseek_v3 deepseek_v2 llama4 gpt_oss dbrx deepseek_v3_fp8_ragged \
    qwen2_moe; do
    moe-convert convert fx/$d out --ep 2 --redundant 2 --quiet || exit
    for e in 0 3 shared; do
        moe-convert explain fx/$d --ep 2 --redundant 2 --layer 1 --expert $e \
            --json --quiet 2>/dev/null | sed 's/"converted": false/"converted": true/' >a
        moe-convert explain out --layer 1 --expert $e --json --quiet \
            2>/dev/null >b
        cmp a b || exit 1
    done
    rm -r out
done
