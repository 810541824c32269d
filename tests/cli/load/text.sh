# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/qwen2_moe out --ep 2 --quiet
moe-convert load out --rank 1
moe-convert load fx/qwen2_moe --ep 2 --rank 1 --layers 1-2
