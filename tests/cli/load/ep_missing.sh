# SPDX-License-Identifier: Apache-2.0
moe-convert load fx/qwen3_moe --rank 0
