# SPDX-License-Identifier: Apache-2.0
moe-convert convert fx/olmoe out --ep 2 --quiet
moe-convert validate out --source fx/olmoe \
    --golden fx/mixtral/golden.safetensors --quiet
