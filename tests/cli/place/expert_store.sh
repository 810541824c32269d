# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/mixtral store --shard-by expert -q
moe-convert place store --placement p.json
