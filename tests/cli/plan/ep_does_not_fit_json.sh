# SPDX-License-Identifier: Apache-2.0
moe-convert plan fx/mixtral --ep 3 --json 2>/dev/null
