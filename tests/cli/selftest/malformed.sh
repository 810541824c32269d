# SPDX-License-Identifier: Apache-2.0
# Exit 3 with file and key.
v=fx/../vectors
try() { # FILE, TEXT of the file
    rm -rf d
    mkdir d
    printf '%s' "$2" >"d/$1"
    moe-convert selftest --vectors d --cpu scalar --quiet 2>&1 | head -n 1
    moe-convert selftest --vectors d --cpu scalar --quiet >/dev/null 2>&1
    echo "exit $?"
}
try eplb.json ''
try eplb.json '[]'
try eplb.json '{"cases": []}'
try eplb.json '{"format": "eplb/2", "cases": []}'
try eplb.json '{"format": "eplb/1"}'
try eplb.json '{"format": "eplb/1", "cases": [{"E": 4}]}'
try eplb.json '{"format": "eplb/1", "cases": [{"id": "x", "E": 4.0}]}'
try eplb.json '{"format": "eplb/1", "cases": [{"id": "x", "E": 2, "R": 0, "W": 1, "loads": [[1, 2], [3]], "out": []}]}'
try eplb.json '{"format": "eplb/1", "cases": [{"id": "x", "E": 2, "R": 0, "W": 1, "loads": [[1, 2]], "out": [{"phy2log": [[0, "1"]], "as": []}]}]}'
try eplb.json '{"format": "eplb/1", "cases": [], "cases": []}'
try waterfill.json '{"format": "waterfill/1", "cases": [{"id": "x", "mode": "static", "W": 3, "P": 4, "K": 1, "S": 1}]}'
try dispatch.json '{"format": "dispatch/1", "maps": [], "chains": [{"id": "x", "map": "y", "layer": 0, "rank": 0, "S": 0, "algorithm": "row", "ids": [[0]], "out": [[0]]}]}'
try expert_choice.json '{"format": "expert_choice/1", "cases": [{"id": "x", "T": 1, "E": 2, "K": 1, "scoring": "sigmoid", "capacity_ppm": 1000000, "C": 1, "logits": [[1, 2]], "ids": {"pad": "balanced"}}]}'
try routing.json '{"format": "routing/1", "cases": []}'
rm -rf d
mkdir d
sed '/"id":"rt-03"/s/"E":256/"E":255/' $v/routing.json >d/routing.json
cp $v/routing.safetensors d
moe-convert selftest --vectors d --cpu scalar
echo "exit $?"
sed '/"id":"rt-03"/s/"renormalize":true,//' $v/routing.json >d/routing.json
moe-convert selftest --vectors d --cpu scalar
