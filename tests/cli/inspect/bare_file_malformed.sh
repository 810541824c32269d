# SPDX-License-Identifier: Apache-2.0
cp fx/mixtral/model-00001-of-00003.safetensors one.safetensors
printf "x" >>one.safetensors
moe-convert inspect --json one.safetensors
