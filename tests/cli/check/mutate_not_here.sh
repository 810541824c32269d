# SPDX-License-Identifier: Apache-2.0
# With R = 0 E is P: the defect cannot be made.
moe-convert check fx/deepseek_v3 --ep 2 --mutate E-for-P --quiet
