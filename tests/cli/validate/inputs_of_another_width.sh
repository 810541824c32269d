# SPDX-License-Identifier: Apache-2.0
# fp8 fixtures are 256 wide, mixtral is 64.
moe-convert convert fx/mixtral out --ep 2 --quiet
moe-convert validate out --source fx/mixtral \
    --inputs fx/deepseek_v3_fp8/golden.safetensors
