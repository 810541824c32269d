# SPDX-License-Identifier: Apache-2.0
printf '{"physical_to_logical_map": [[0,1,2,3,4,5,6,7,0,1,2,3],
 [7,6,5,4,3,2,1,0,7,6,5,4],[0,2,4,6,1,3,5,7,2,3,0,1]]}' > a.json
printf '{"physical_to_logical_map": [[1,0,2,3,4,5,6,7,0,1,2,3],
 [7,6,5,4,3,2,1,0,7,5,6,4],[2,2,4,6,1,3,5,7,2,3,0,1]]}' > b.json
moe-convert diff a.json b.json --format github |
    grep -o "^::error file=[^,]*"
