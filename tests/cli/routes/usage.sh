# SPDX-License-Identifier: Apache-2.0
# Wrong words: exit 2, one line and a hint.
moe-convert routes
moe-convert routes chck
moe-convert routes import x.json --out y
moe-convert routes import x.json --source fx/olmoe
moe-convert routes merge x.safetensors
moe-convert routes export x.safetensors
moe-convert routes export x.safetensors --format vllm
exec moe-convert routes check x.safetensors --logits y
