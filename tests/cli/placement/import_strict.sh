# SPDX-License-Identifier: Apache-2.0
# Warnings are findings: nothing is written.
echo '[[0,1,2,3,3,2,1,0]]' >p.json
moe-convert placement import p.json q.json --moe-layers 0-0 --ep 2 --strict -q || exit 99
echo '[[0,1,2,2,3,0,1,0]]' >p.json
moe-convert placement import p.json r.json --moe-layers 0-0 --ep 2 --strict
[ $? -eq 1 ] && [ ! -e r.json ] || exit 98
moe-convert placement show . --ep 2
[ $? -eq 2 ]
