# SPDX-License-Identifier: Apache-2.0
# A comma list and a repeated option are the same.
moe-convert check fx/gpt_oss --ep 2 --mutate swap-slots,bias-dropped --mutate transposed-down --quiet
