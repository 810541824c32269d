# SPDX-License-Identifier: Apache-2.0
printf '{"physical_to_logical_map": [[0,1,2,3,4,5,6,7,0,1,2,3],
 [7,6,5,4,3,2,1,0,7,6,5,4],[0,2,4,6,1,3,5,7,2,3,0,1]]}' > a.json
printf '{"physical_to_logical_map": [[1,0,2,3,4,5,6,7,0,1,2,3],
 [7,6,5,4,3,2,1,0,7,5,6,4],[2,2,4,6,1,3,5,7,2,3,0,1]]}' > b.json
# Of two files alone slots are counted; with a model bytes and links.
moe-convert diff a.json b.json
echo $?
moe-convert diff a.json b.json --source fx/mixtral --ep 4 --nodes 2
echo $?
moe-convert diff a.json a.json --source fx/mixtral --ep 4
