# SPDX-License-Identifier: Apache-2.0
# The page stands alone.
[ -n "$PYTHON" ] || exit 77
make=$(dirname "$0")/../make_routes.py
"$PYTHON" "$make" fx/mixtral r || exit
moe-convert routes import r.json --source fx/mixtral -o '<r>.safetensors' -q || exit
moe-convert stats '<r>.safetensors' --ep 2 --html p.html || exit
grep -e 'src=' -e 'https\?://' -e '<r>' p.html | grep -vc www.w3.org
head -c 15 p.html
