#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check_validate.sh MOE_CONVERT PLUGIN: level 3 with the converted side on a
# device, here the emulated one: float32, bf16 and fp8 blocks, zero findings,
# a changed slot is found, no plug-in is exit 7.
set -eu
tool=$1 plugin=$2
cd "$(dirname "$0")/../.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

die() {
    echo "check_validate: $*" >&2
    exit 1
}
for name in deepseek_v3_fp8 gpt_oss qwen2_moe; do
    source=fixtures/checkpoints/$name
    "$tool" convert "$source" "$dir/$name" --ep 2 --quiet >/dev/null
    "$tool" validate "$dir/$name" --source "$source" --device cuda \
        --plugin "$plugin" >"$dir/said" || die "$name: $(cat "$dir/said")"
    grep -q 'ids equal' "$dir/said" || die "$name: $(cat "$dir/said")"
done
status=0
"$tool" validate "$dir/gpt_oss" --source fixtures/checkpoints/gpt_oss \
    --device cuda --plugin ./none.so 2>"$dir/said" || status=$?
[ $status = 7 ] || die "without a plug-in: status $status"
grep -q 'none.so' "$dir/said" || die "$(cat "$dir/said")"

# One byte in the middle of a rank's experts.
file=$(find "$dir/gpt_oss" -name "experts-rank-00001*" | head -1)
size=$(wc -c <"$file")
printf '\125' |
    dd of="$file" bs=1 seek=$((size * 2 / 3)) conv=notrunc 2>/dev/null
status=0
"$tool" validate "$dir/gpt_oss" --source fixtures/checkpoints/gpt_oss \
    --device cuda --plugin "$plugin" >"$dir/said" 2>&1 || status=$?
[ $status = 1 ] || die "a changed byte: status $status: $(cat "$dir/said")"
