# SPDX-License-Identifier: Apache-2.0
# Every kind that a conversion allows, named by what the experts compute.
moe-convert convert fx/deepseek_v3_fp8 out --ep 2 --redundant 2 --quiet
moe-convert check out --source fx/deepseek_v3_fp8 --level kernels \
    --mutate all | grep -v "^ \|^\["
exit 1
