# SPDX-License-Identifier: Apache-2.0
# Where vLLM puts 7 experts on 3 ranks by itself.
moe-convert placement import --strategy linear --experts 7 --moe-layers 1-2 --ep 3 --format vllm &&
moe-convert placement import --strategy round_robin rr.json --experts 7 --moe-layers 1-2 --ep 3 --format vllm -q &&
cat rr.json
moe-convert placement import --strategy linear --experts 7 --moe-layers 1-2 --ep 3
[ $? -eq 3 ] || exit 99
moe-convert placement import --strategy linear
[ $? -eq 2 ] || exit 99
moe-convert placement check rr.json --experts 7 --ep 3 --allow-empty
