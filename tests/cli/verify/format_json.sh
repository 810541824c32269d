# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/olmoe out --ep 2 --quiet
moe-convert verify out --json >a && moe-convert verify out --format json >b && cmp a b
