# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/olmoe out --ep 2 --quiet
moe-convert verify out --json >1 && moe-convert verify out --format json >2 && cmp 1 2
