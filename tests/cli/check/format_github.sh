# SPDX-License-Identifier: Apache-2.0
# The text, and what is wrong in it as one annotation: by rule, file and line.
moe-convert convert fx/olmoe out --ep 2 --quiet
file=$(ls out/experts-rank-00001-*.safetensors)
dd if=/dev/zero of="$file" bs=1 seek=8192 count=64 conv=notrunc status=none
moe-convert check out --format github --report text=check.log --quiet
