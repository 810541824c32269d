# SPDX-License-Identifier: Apache-2.0
echo '[[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,0,1,2,15]]' >p.json
moe-convert placement check p.json --ep 4 --strict
