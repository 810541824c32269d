# SPDX-License-Identifier: Apache-2.0
moe-convert explain fx/deepseek_v3 --ep 2 --layer mtp.0 --expert 15 --json
