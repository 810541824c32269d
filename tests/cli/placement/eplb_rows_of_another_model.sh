# SPDX-License-Identifier: Apache-2.0
printf '{"logical_count": [[1,2,3,4,5,6,7,8]]}' > c.json
moe-convert placement eplb --logical-count c.json --ep 2 --source fx/mixtral
