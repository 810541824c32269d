# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/qwen2_moe out --ep 2 --redundant 2 --quiet
moe-convert validate out --source fx/qwen2_moe --json
