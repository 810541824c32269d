# SPDX-License-Identifier: Apache-2.0
printf '{"physical_to_logical_map": [[0,1,2,3,4,5,6,7,0,1],
 [7,6,5,4,3,2,1,0,7,6],[0,2,4,6,1,3,5,7,2,3]]}' > a.json
printf '{"physical_to_logical_map": [[0,1,2,3,4,5,6,7,0,2],
 [7,6,5,4,3,2,1,0,7,6],[0,2,4,6,1,3,5,7,2,3]]}' > b.json
moe-convert convert fx/mixtral out --ep 2 --placement a.json -q
sed 's/0,2\],/0,9],/' b.json > bad.json
moe-convert place out --placement bad.json
echo $?
printf '[[0,1,2,3,4,5,6,7,0],[0,1,2,3,4,5,6,7,0],[0,1,2,3,4,5,6,7,0]]' > odd.json
moe-convert place out --placement odd.json
ls
