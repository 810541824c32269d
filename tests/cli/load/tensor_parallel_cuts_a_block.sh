# SPDX-License-Identifier: Apache-2.0
moe-convert load fx/deepseek_v3_fp8 --ep 2 --rank 0 --tp 2
