# SPDX-License-Identifier: Apache-2.0
echo '[[3,2,1,0,0,1]]' >p.json
echo '[[8,2,2,0]]' >c.json
moe-convert placement show p.json --ep 3 --logical-count c.json --json
