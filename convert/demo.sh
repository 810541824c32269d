#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The main job, once, before your eyes: a small checkpoint in the format of
# DeepSeek-V3 (16 routed experts, one shared) becomes files for four ranks
# with four redundant slots, is proved slot by slot, and is taken back byte
# for byte. Installs what the build lacks (apt, as root or through sudo).
#
#   sh convert/demo.sh
set -eu
cd "$(dirname "$0")/.."
. tests/support/deps.sh

step() {
    printf '\n+ %s\n' "$*"
    "$@"
}

need_build
install_missing
step cmake --preset release -DMOEC_TESTS=OFF
step cmake --build build/release --parallel "$(jobs_here)" \
    --target moe-convert

PATH=$(pwd)/build/release:$PATH
src=$(pwd)/fixtures/checkpoints/deepseek_v3
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
cd "$dir"

step moe-convert inspect "$src"
step moe-convert plan "$src" --ep 4 --redundant 4
step moe-convert convert "$src" converted --ep 4 --redundant 4
step ls -l converted
step moe-convert verify converted --source "$src"
step moe-convert explain converted --layer 1 --expert 3
step moe-convert unconvert converted back

# golden.safetensors is a test's reference beside the checkpoint, not part of
# it: no index names it, so no conversion carries it.
n=0
for file in "$src"/*; do
    name=$(basename "$file")
    [ "$name" != golden.safetensors ] || continue
    step cmp "$file" "back/$name"
    n=$((n + 1))
done
for file in back/*; do
    if [ ! -f "$src/$(basename "$file")" ]; then
        echo "$file: the source has no such file" >&2
        exit 1
    fi
done

printf '\n%s\n' "16 experts and one shared became 4 ranks of 5 + 1 slots, \
every slot was proved, and all $n files of the checkpoint came back byte for \
byte."
