# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/qwen3_next out --ep 2 --redundant 2 --quiet
moe-convert check out --source fx/qwen3_next --level kernels --quiet
