# SPDX-License-Identifier: Apache-2.0
# What SGLang takes without a word, and the rest: exit 3, layer, slot, value.
refuse() {
    moe-convert placement check "$@" --source fx/deepseek_v3 -q
    [ $? -eq 3 ] || echo "exit is not 3: $*"
}
row=0,1,2,3,4,5,6,7,8,9,10,11,12,13,14
echo "{\"physical_to_logical_map\": [[$row,15],[$row,15],[$row,14]]}" >missing.json
echo "{\"physical_to_logical_map\": [[$row,15]]}" >rows.json
echo "{\"physical_to_logical_map\": [[0],[0],[0]]}" >slots.json
echo "{\"physical_to_logical_map\": [[$row,15],[$row,15],[$row,16]]}" >range.json
echo "{\"physical_to_logical_map\": [[$row,15],[$row,15],[$row,NaN]]}" >nan.json
echo "{\"physical_to_logical_map\": [[$row,15],[$row,15],[$row,true]]}" >bool.json
echo "{\"logical_count\": [[$row,15]]}" >counts.json
echo "[[$row,15],[$row,15]]" >good.json
refuse missing.json
refuse rows.json
refuse slots.json
refuse range.json
refuse nan.json
refuse bool.json
refuse counts.json
refuse absent.json
refuse good.json --ep 3
refuse good.json --ep 17
refuse good.json --ep 0
refuse good.json --redundant 4
moe-convert placement check fx/deepseek_v3 -q
[ $? -eq 3 ]
