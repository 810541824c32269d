# SPDX-License-Identifier: Apache-2.0
# SGLang's form, vLLM's and ours hold the same, byte for byte.
[ -n "$PYTHON" ] || exit 77
make=$(dirname "$0")/../make_routes.py
"$PYTHON" "$make" fx/deepseek_v3 one || exit
"$PYTHON" "$make" fx/deepseek_v3 two --rotate 3 --id two || exit
src="--source fx/deepseek_v3 -q"
moe-convert routes import one.json $src -o a.safetensors || exit
moe-convert routes import one.npy $src --request golden -o b.safetensors || exit
cmp a.safetensors b.safetensors || exit
moe-convert routes export a.safetensors back.npy --format vllm || exit
cmp back.npy one.npy || exit
moe-convert routes import one.json two.json $src -o both.safetensors || exit
moe-convert routes export both.safetensors --format sglang -o both.json || exit
moe-convert routes import both.json $src -o c.safetensors || exit
cmp both.safetensors c.safetensors || exit
moe-convert routes import two.json $src -o two.safetensors || exit
moe-convert routes merge a.safetensors two.safetensors b.safetensors -o d.safetensors || exit
cmp both.safetensors d.safetensors || exit
moe-convert routes export both.safetensors --format vllm --request two -o two.back || exit
cmp two.back two.npy || exit
moe-convert routes export both.safetensors --format vllm -o x.npy
echo exit $?
