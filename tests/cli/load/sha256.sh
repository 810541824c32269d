# SPDX-License-Identifier: Apache-2.0
# SHA-256 of every byte, and damage has its name.
moe-convert convert fx/mixtral out --ep 2 --quiet || exit
moe-convert load out --rank 0 --verify sha256 --json |
    grep -e '"verif' -e '"bytes_verified'
at=$(($(stat -c %s out/experts-rank-00000-*) / 2))
printf '\377\377\377\377' |
    dd of="$(echo out/experts-rank-00000-*)" bs=1 seek="$at" conv=notrunc status=none
moe-convert load out --rank 0 --verify sha256 2>/dev/null
echo "$?"
