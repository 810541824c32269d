# SPDX-License-Identifier: Apache-2.0
# What is no recording, not this model's, or there already.
[ -n "$PYTHON" ] || exit 77
make=$(dirname "$0")/../make_routes.py
"$PYTHON" "$make" fx/olmoe one || exit
moe-convert routes import one.json --source fx/olmoe -q -o r.safetensors || exit
try() {
    moe-convert routes "$@" -q
    echo "exit $?" >&2
}
try import one.json --source fx/olmoe -o r.safetensors
try import one.json --source fx/mixtral -o x.safetensors
try import fx/olmoe/config.json --source fx/olmoe -o x.safetensors
try import absent.json --source fx/olmoe -o x.safetensors
try check fx/olmoe/golden.safetensors
try check absent.safetensors
try check r.safetensors --source fx/mixtral
try merge r.safetensors fx/olmoe/golden.safetensors -o x.safetensors
try export r.safetensors --format sglang --request nobody
[ ! -e x.safetensors ]
