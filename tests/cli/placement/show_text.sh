# SPDX-License-Identifier: Apache-2.0
echo '{"physical_to_logical_map": [[0,1,2,3,4,5,6,7,8,9,10,11],[0,0,2,3,4,5,6,7,8,9,1,1],[1,0,2,3,4,5,6,7,9,8,2,3]]}' >p.json
echo '[[9,1,1,1,1,1,1,1,1,1],[1,1,1,1,1,1,1,1,1,3],[2,2,2,2,2,2,2,2,2,2]]' >c.json
moe-convert placement show p.json --experts 10 --ep 2
[ $? -eq 3 ] || exit 99
sed -i 's/10,11\]/1,0]/' p.json
moe-convert placement show p.json --source fx/qwen3_moe --ep 2 &&
moe-convert placement show p.json --source fx/qwen3_moe --ep 2 --logical-count c.json -q &&
moe-convert placement show p.json --source fx/qwen3_moe --ep 2 --layer 1 --shared 1 -q
