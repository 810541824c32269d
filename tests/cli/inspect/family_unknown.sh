# SPDX-License-Identifier: Apache-2.0
mkdir src
cp fx/mixtral/model* src
sed "s/\"model_type\": \"mixtral\"/\"model_type\": \"nobody\"/" fx/mixtral/config.json >src/config.json
moe-convert inspect src
