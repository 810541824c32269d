# SPDX-License-Identifier: Apache-2.0
# One wrong number in each file is found, and named.
mkdir v
cp fx/../vectors/* v
chmod -R u+w v
# $1: FILE, $2: case, $3: what sed makes of its line
spoil() {
    before=$(cksum <"v/$1")
    sed "/\"id\":\"$2\"/$3" "v/$1" >new && mv new "v/$1"
    [ "$(cksum <"v/$1")" != "$before" ] || echo "sed changed nothing in $1"
}
spoil dispatch.json map-01 's/"static":\[\[0,1,2,19/"static":[[0,1,2,3/'
spoil dispatch.json map-03 's/"collapsed":\[\[7,22/"collapsed":[[7,21/'
spoil dispatch.json chain-02 's/\[30,15,38,39\]/[30,15,39,40]/'
spoil dispatch.json chain-08 's/0\.400000006/0.400002/'
spoil dispatch.json bad-04 's/"slot":9/"slot":8/'
spoil dispatch.json bad-06 's/expert-without-slot/id-range/'
spoil dispatch.json bad-19 's/0,0,1,1,2,2,3,3,4,4,5,5,6,6,7,7,8,9,10,11,12,13,14,15/0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,0,1,2,3,4,5,6,7/'
spoil waterfill.json wf-04 's/"best":\[6\]/"best":[7]/'
spoil waterfill.json wf-05 's/"target":99/"target":98/'
spoil waterfill.json wf-06 's/"load":\[13,/"load":[14,/'
spoil expert_choice.json ec-04 's/"C":5/"C":4/'
spoil expert_choice.json ec-06 's/"short_tokens":1/"short_tokens":2/'
spoil expert_choice.json ec-37 's/"balanced":\[\[/"balanced":[[-/'
spoil eplb.json eplb-28 's/"W":4/"W":8/'
spoil eplb.json eplb-56 's/"replica":\[\[0/"replica":[[1/'
spoil routing.json rt-12 's/"rsf":16.0/"rsf":16.001/'
spoil routing.json rt-16 's/"topk_group":4/"topk_group":3/'
spoil routing.json rt-41 's/"non_padded":2/"non_padded":3/'
moe-convert selftest --vectors v --cpu scalar --quiet
