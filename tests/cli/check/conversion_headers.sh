# SPDX-License-Identifier: Apache-2.0
# No weight is read: a damaged one is not seen.
moe-convert convert fx/olmoe out --ep 2 --quiet
file=$(ls out/experts-rank-00001-*.safetensors)
dd if=/dev/zero of="$file" bs=1 seek=8192 count=64 conv=notrunc status=none
moe-convert check out --level headers --json || exit 9
moe-convert check out --quiet >found
code=$?
grep -c same-bytes found
exit $code
