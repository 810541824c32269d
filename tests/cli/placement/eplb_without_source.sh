# SPDX-License-Identifier: Apache-2.0
# Four steps of two layers; no model says what they are.
printf '[[[1,2,3,4],[4,3,2,1]],[[1,1,1,1],[9,0,0,0]]]' > c.json
moe-convert placement eplb --logical-count c.json --ep 2 --redundant 2
