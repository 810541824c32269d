# SPDX-License-Identifier: Apache-2.0
# What is wrong already would pass for the mutation.
moe-convert convert fx/olmoe out --ep 2 --quiet
file=$(ls out/experts-rank-00000-*.safetensors)
dd if=/dev/zero of="$file" bs=1 seek=8192 count=64 conv=notrunc status=none
moe-convert check out --level digests --mutate swap-slots --quiet 2>said
code=$?
grep -c "wrong before it is changed" said
exit $code
