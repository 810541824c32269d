# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/deepseek_v3 out --ep 4 --redundant 4 --quiet &&
moe-convert placement show out --layer mtp.0
