# SPDX-License-Identifier: Apache-2.0
moe-convert check fx/deepseek_v3 --ep 2 --mutate rsf-twice
