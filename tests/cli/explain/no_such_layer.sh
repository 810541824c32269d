# SPDX-License-Identifier: Apache-2.0
moe-convert explain fx/deepseek_v3 --layer 0 --expert 0
