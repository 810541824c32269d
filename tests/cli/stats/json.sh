# SPDX-License-Identifier: Apache-2.0
# Every load of every layer. Two ranks of two nodes, waterfill at work.
[ -n "$PYTHON" ] || exit 77
make=$(dirname "$0")/../make_routes.py
"$PYTHON" "$make" fx/mixtral a || exit
"$PYTHON" "$make" fx/mixtral b --rotate 1 --id b || exit
"$PYTHON" "$make" fx/mixtral c --rotate 1 --id c || exit
moe-convert routes import a.json b.json c.json --source fx/mixtral -o r.safetensors -q || exit
exec moe-convert stats r.safetensors --ep 2 --nodes 2 --shared 2 --waterfill \
    --batch 96 --replica nearest --redundant 2 --json
