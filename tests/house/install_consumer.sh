#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Install into an empty prefix, move the prefix, and build strangers' programs
# against it: C with pkg-config, C++ with find_package, shared and static.
#
# usage: [CC=cc] [CXX=c++] install_consumer.sh BUILD_DIR
set -eu
build=$1
here=$(cd "$(dirname "$0")/consumer" && pwd)
CC=${CC:-cc}
CXX=${CXX:-c++}
if ! command -v "$CXX" >/dev/null 2>&1; then
    echo "no C++ compiler ($CXX): skipped"
    exit 77
fi
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

cmake --install "$build" --prefix "$dir/first" >"$dir/log" || {
    cat "$dir/log"
    exit 1
}
mv "$dir/first" "$dir/moved"
prefix=$dir/moved
pc=$(find "$prefix" -name moec.pc)
lib=$(dirname "$(dirname "$pc")")
PKG_CONFIG_PATH=$(dirname "$pc")${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}
LD_LIBRARY_PATH=$lib
export PKG_CONFIG_PATH LD_LIBRARY_PATH

step() {
    echo "+ $*"
    "$@"
}
# shellcheck disable=SC2046 # lists of flags
step "$CC" -std=c11 -Wall -Wextra -Werror "$here/consumer.c" \
    -o "$dir/consumer" $(pkg-config --cflags --libs moec)
step "$dir/consumer"

# The example is installed, and builds as its head says.
example=$(find "$prefix" -name example_server.c)
# shellcheck disable=SC2046 # lists of flags
step "$CC" -std=c11 -Wall -Wextra -Werror "$example" -o "$dir/serve" \
    $(pkg-config --cflags --libs moec)
step "$dir/serve" "$here/../../../fixtures/checkpoints/qwen3_moe" 1 2

step cmake -S "$here" -B "$dir/build" "-DCMAKE_PREFIX_PATH=$prefix" \
    "-DCMAKE_C_COMPILER=$CC" "-DCMAKE_CXX_COMPILER=$CXX" >"$dir/log" || {
    cat "$dir/log"
    exit 1
}
step cmake --build "$dir/build" >"$dir/log" 2>&1 || {
    cat "$dir/log"
    exit 1
}
step "$dir/build/consumer_shared"
LD_LIBRARY_PATH=
step "$dir/build/consumer_static"

# The installed command finds its way without the build tree.
step "$prefix/bin/moe-convert" --version
test -f "$prefix/include/moec/rules.def"
test -f "$prefix/share/moec/schemas/policy-1.schema.json"
if [ -d "$build/described" ]; then
    test -f "$prefix/share/man/man1/moe-convert-check.1"
    test -f "$prefix/share/bash-completion/completions/moe-convert"
    test -f "$prefix/share/zsh/vendor-completions/_moe-convert"
    test -f "$prefix/share/fish/vendor_completions.d/moe-convert.fish"
fi
# What is inside: every library that the program loads by name.
sbom=$prefix/share/doc/moec/moec.spdx.json
for name in $(readelf -d "$prefix/bin/moe-convert" |
    sed -n 's/.*(NEEDED).*\[lib\([a-z]*\)[-.].*/\1/p'); do
    case $name in
    c | m | moec) continue ;;
    esac
    if ! grep -q "\"SPDXID\": \"SPDXRef-$name\"" "$sbom"; then
        echo "$name is not in moec.spdx.json"
        exit 1
    fi
done
if find "$prefix" -name '*.c' ! -path '*/examples/*' | grep .; then
    echo "installed a source file"
    exit 1
fi
