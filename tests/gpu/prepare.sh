#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# prepare.sh [--no-nvcc]
#
# On a machine with packages: builds into build/gpu-carry (git ignores it, at
# most 60 MiB) what a machine with a GPU may not have: the device tests with
# their libraries inside, those libraries to build the tests again, and, where
# nvcc is here, the plug-in and its benchmark. run.sh uses the folder where it
# finds it, and builds anew what is older than the tree.
#
# MOEC_GPU_ARCH (90a) is the card that the plug-in is compiled for.
set -eu
cd "$(dirname "$0")/../.."
. tests/gpu/gpu_build.sh
carry=build/gpu-carry
rm -rf "$carry"
mkdir -p "$carry/bin" "$carry/lib" "$carry/include"

# found NAME: where the linker has it
found() {
    path=$(${CC:-gcc} -print-file-name="$1")
    [ "$path" != "$1" ] || { echo "prepare: no $1 here" >&2; return 1; }
    echo "$path"
}
for lib in libjansson.a libcrypto.a libyaml.a; do
    cp "$(found $lib)" "$carry/lib/"
done
# These are not there as archives, or not all of them is.
for lib in libcmocka libxxhash; do
    cp -L "$(found $lib.so)" "$carry/lib/$lib.so.0"
    ln -s $lib.so.0 "$carry/lib/$lib.so"
done
# Their headers, and what those include of their own.
{
    printf '#include <%s>\n' setjmp.h stdarg.h stddef.h stdint.h
    grep -rhE '^# *include <(openssl/|jansson|xxhash|yaml|cmocka)' \
        loader kernels mapping validate load convert tests/unit tests/support |
        sort -u
} | ${CC:-gcc} -M -xc - | tr -s ' ' '\n' |
    grep -E '/(openssl/.*|jansson.*|xxhash|yaml|cmocka.*)\.h$' |
    while read -r path; do
        case $path in
        */openssl/*) to=openssl/${path##*/openssl/} ;;
        *) to=${path##*/} ;;
        esac
        mkdir -p "$(dirname "$carry/include/$to")"
        cp -L "$path" "$carry/include/$to"
    done

# The program itself, where CMake has built one of this tree.
for tool in "${MOEC_CONVERT:-}" build/release/moe-convert build/dev/moe-convert
do
    [ -x "$tool" ] || continue
    if [ -n "$(find loader kernels mapping validate load store convert -name '*.[ch]' \
        -newer "$tool" | head -1)" ]; then
        echo "$tool is older than the tree: not taken"
        continue
    fi
    cp "$tool" "$carry/bin/moe-convert"
    strip "$carry/bin/moe-convert"
    # All that it needs but what every machine has: libcurl brings many.
    ldd "$tool" | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' |
        grep -v -E '/(libc|libm|libdl|libpthread|librt|libresolv)\.so' |
        while read -r path; do
            cp -L "$path" "$carry/lib/"
        done
    break
done
[ -x "$carry/bin/moe-convert" ] ||
    echo "no moe-convert here: no selftest and no validate on the card"

echo "device tests ..."
plain_host "$carry/bin" "$carry"
echo "plug-in over the emulation ..."
plain_emulated "$carry/bin"
if [ "${1:-}" = --no-nvcc ]; then
    echo "no plug-in for a card, as asked: run.sh builds it"
elif command -v nvcc >/dev/null; then
    echo "plug-in for sm_${MOEC_GPU_ARCH:-90a} ..."
    plain_device "$carry/bin" "${MOEC_GPU_ARCH:-90a}"
    echo "${MOEC_GPU_ARCH:-90a}" >"$carry/arch"
else
    echo "no nvcc here: run.sh builds the plug-in"
fi
sources_stamp >"$carry/stamp"
mib=$(du -sm "$carry" | cut -f1)
echo "$carry: $mib MiB"
[ "$mib" -le 60 ] || { echo "prepare: more than 60 MiB" >&2; exit 1; }
