# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/deepseek_v3_fp8_ragged out --ep 4 --quiet
moe-convert unconvert out back --json --threads 1
for f in config.json model.safetensors.index.json $(cd fx/deepseek_v3_fp8_ragged && ls model-*.safetensors); do
    cmp fx/deepseek_v3_fp8_ragged/$f back/$f || exit 99
done
