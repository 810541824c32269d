# SPDX-License-Identifier: Apache-2.0
moe-convert explain fx/deepseek_v3 --ep 4 --redundant 4 --layer 2 --expert 3 --json
