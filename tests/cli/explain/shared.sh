# SPDX-License-Identifier: Apache-2.0
moe-convert explain fx/deepseek_v2 --ep 2 --layer 1 --expert shared --json
