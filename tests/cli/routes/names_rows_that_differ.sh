# SPDX-License-Identifier: Apache-2.0
# Another model's routes: warnings, findings with --strict.
[ -n "$PYTHON" ] || exit 77
make=$(dirname "$0")/../make_routes.py
"$PYTHON" "$make" fx/olmoe other --rotate 1 || exit
moe-convert routes import other.npy --source fx/olmoe -o r.safetensors -q || exit
moe-convert routes check r.safetensors --source fx/olmoe \
    --logits fx/olmoe/golden.safetensors
echo exit $?
exec moe-convert routes check r.safetensors --source fx/olmoe \
    --logits fx/olmoe/golden.safetensors --strict --json
