# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/olmoe out --ep 2 --quiet
truncate -s 100 out/manifest.json
moe-convert verify out --quiet
