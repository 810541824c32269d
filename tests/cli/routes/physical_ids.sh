# SPDX-License-Identifier: Apache-2.0
# Ids of slots mean nothing without the placement of their pass. 3, 2, 1 ..:
# rotated once more they are the golden's again.
[ -n "$PYTHON" ] || exit 77
make=$(dirname "$0")/../make_routes.py
"$PYTHON" "$make" fx/olmoe logical || exit
"$PYTHON" "$make" fx/olmoe physical --rotate 1 || exit
echo '[[7,0,1,2,3,4,5,6],[7,0,1,2,3,4,5,6],[7,0,1,2,3,4,5,6]]' >p2l.json
moe-convert routes import logical.json --source fx/olmoe -q -o a.safetensors || exit
moe-convert routes import physical.json --source fx/olmoe -q \
    --placement p2l.json -o b.safetensors || exit
exec cmp a.safetensors b.safetensors
