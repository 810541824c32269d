# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/qwen2_moe out --ep 2 --redundant 2 --quiet
moe-convert inspect out
moe-convert convert fx/qwen2_moe store --shard-by expert --quiet
moe-convert inspect store | head -n 2
