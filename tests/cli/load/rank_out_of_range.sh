# SPDX-License-Identifier: Apache-2.0
moe-convert load fx/qwen3_moe --ep 2 --rank 2
