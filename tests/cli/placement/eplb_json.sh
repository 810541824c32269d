# SPDX-License-Identifier: Apache-2.0
printf '{"logical_count": [[900,30,40,10,20,5,60,70],[1,2,3,4,5,6,7,8],
 [100,100,100,100,0,0,0,0]]}' > c.json
moe-convert placement eplb --logical-count c.json --ep 4 --redundant 4 \
    --source fx/mixtral --planner moec --json
