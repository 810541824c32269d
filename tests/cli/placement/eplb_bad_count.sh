# SPDX-License-Identifier: Apache-2.0
printf '[[1,2,3,4],[4,3,-2,1]]' > c.json
moe-convert placement eplb --logical-count c.json --ep 2
