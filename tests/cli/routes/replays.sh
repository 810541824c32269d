# SPDX-License-Identifier: Apache-2.0
# Routes that the model's own library chose, from its own logits: none differs.
[ -n "$PYTHON" ] || exit 77
make=$(dirname "$0")/../make_routes.py
for m in deepseek_v3 gpt_oss qwen2_moe; do
    "$PYTHON" "$make" fx/$m $m || exit
    moe-convert routes import $m.json --source fx/$m -o $m.safetensors || exit
    moe-convert routes check $m.safetensors --source fx/$m \
        --logits fx/$m/golden.safetensors --strict || exit
done
