# SPDX-License-Identifier: Apache-2.0
moe-convert inspect --json fx/qwen2_moe
