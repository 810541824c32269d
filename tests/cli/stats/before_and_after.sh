# SPDX-License-Identifier: Apache-2.0
# A recording's counts, the placement that EPLB makes of them, and the load of
# both, with waterfill.
[ -n "$PYTHON" ] || exit 77
make=$(dirname "$0")/../make_routes.py
src="--source fx/deepseek_v3"
"$PYTHON" "$make" fx/deepseek_v3 r || exit
moe-convert routes import r.json $src -o r.safetensors -q || exit
moe-convert stats r.safetensors $src --ep 4 --redundant 4 --counts counts.json || exit
cat counts.json
moe-convert placement eplb --logical-count counts.json $src --ep 4 \
    --redundant 4 -o after.json -q || exit
moe-convert stats r.safetensors $src --ep 4 --redundant 4 \
    --placement-after after.json --waterfill --batch 16 -v || exit
moe-convert stats counts.json $src --ep 4 --redundant 4 --nodes 2 \
    --placement-after after.json --replica dynamic || exit
exec moe-convert stats r.safetensors --ep 2 --placement-after after.json
