# SPDX-License-Identifier: Apache-2.0
# The last byte of the common file belongs to a common tensor or to a pad.
moe-convert convert fx/olmoe out --ep 2 --quiet
file=$(ls out/common-*.safetensors)
at=$(($(stat -c %s "$file") - 1))
old=$(od -An -tu1 -j $at -N 1 "$file" | tr -d ' ')
# shellcheck disable=SC2059 # the format is the byte
printf "\\$(printf %o $((old ^ 1)))" |
    dd of="$file" bs=1 seek=$at conv=notrunc status=none
moe-convert verify out
