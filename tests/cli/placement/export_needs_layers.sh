# SPDX-License-Identifier: Apache-2.0
# Rows of MoE layers alone do not say which decoder layers they are.
echo '[[0,1,2,3],[3,2,1,0]]' >p.json
moe-convert placement export p.json --format sglang
[ $? -eq 3 ] || exit 99
moe-convert placement export p.json --format vllm-ascend
[ $? -eq 3 ] || exit 99
moe-convert placement export p.json
[ $? -eq 2 ] || exit 99
moe-convert placement export p.json --format trtllm --moe-layers 3-4
