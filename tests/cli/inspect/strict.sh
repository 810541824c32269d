# SPDX-License-Identifier: Apache-2.0
# A wrong total_size is a warning; with --strict a finding.
mkdir src
cp fx/mixtral/config.json fx/mixtral/model* src
sed -i "s/\"total_size\": [0-9]*/\"total_size\": 5/" src/model.safetensors.index.json
moe-convert inspect src --quiet >/dev/null
echo $?
moe-convert inspect src --strict >/dev/null
