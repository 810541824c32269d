# SPDX-License-Identifier: Apache-2.0
for l in 1- -1 2-1 x 1,2 90; do
    moe-convert load fx/qwen3_moe --ep 2 --layers "$l"
    echo "$?"
done
