# SPDX-License-Identifier: Apache-2.0
moe-convert check fx/deepseek_v3 --ep 2 --redundant 2 --mutate E-for-P --quiet
