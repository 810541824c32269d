# SPDX-License-Identifier: Apache-2.0
moe-convert placement eplb --ep 2
moe-convert placement eplb --logical-count c.json
moe-convert placement eplb --logical-count c.json --ep 2 --max-moves 3
moe-convert plan fx/mixtral --ep 2 --eplb-ties stable
moe-convert plan fx/mixtral --ep 2 --placement p.json --logical-count c.json
moe-convert placement eplb --logical-count absent.json --ep 2
