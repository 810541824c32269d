# SPDX-License-Identifier: Apache-2.0
# One number of one expert's down projection on rank 1.
moe-convert convert fx/mixtral out --ep 2 --quiet
f=out/experts-rank-00001-of-00002-part-00001.safetensors
printf '\001\100' | dd of="$f" bs=1 seek=40960 conv=notrunc status=none
moe-convert validate out --source fx/mixtral
