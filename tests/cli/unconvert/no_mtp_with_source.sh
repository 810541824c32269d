# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/deepseek_v3 out --ep 4 --no-mtp --quiet
moe-convert unconvert out back --source fx/deepseek_v3 --json --threads 1
for f in config.json model.safetensors.index.json $(cd fx/deepseek_v3 && ls model-*.safetensors); do
    cmp fx/deepseek_v3/$f back/$f || exit 99
done
echo another source:
moe-convert unconvert out other --source fx/deepseek_v3_fp8
code=$?
ls
exit $code
