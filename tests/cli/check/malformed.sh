# SPDX-License-Identifier: Apache-2.0
# A header that does not parse is input (3), not a finding (1).
mkdir src
printf "\0\0\0\0\0\0\0\0" >src/model.safetensors
moe-convert check src --ep 2 --quiet
