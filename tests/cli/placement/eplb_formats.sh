# SPDX-License-Identifier: Apache-2.0
printf '[[900,30,40,10,20,5,60,70],[1,2,3,4,5,6,7,8]]' > c.json
for f in vllm trtllm log2phy; do
    moe-convert placement eplb --logical-count c.json --ep 2 --redundant 2 -q \
        --format $f | tr -d ' \n'
    echo
done
moe-convert placement eplb --logical-count c.json --ep 2 --redundant 2 -q \
    --format phy2log --npy --out p.npy
# Today's placement without a model.
moe-convert placement eplb --logical-count c.json --ep 2 --redundant 2 \
    --planner moec --from p.npy --max-moves 2 --out q.json
