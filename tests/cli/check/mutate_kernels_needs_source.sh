# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/deepseek_v3 out --ep 2 --quiet
moe-convert check out --mutate rsf-twice
