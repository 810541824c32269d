# SPDX-License-Identifier: Apache-2.0
mkdir src
cp fx/mixtral/config.json fx/mixtral/model* src
truncate -s -1 src/model-00002-of-00003.safetensors
moe-convert inspect src
