# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh
#
# Sourced by run.sh and prepare.sh, in the root of the tree: the plug-in, its
# benchmark and the device tests built by nothing but gcc and nvcc, for
# machines where CMake or the libraries it looks for are not. Flags are those
# of the CMakeLists.txt; what is compiled is what lies in the directories.

# What the programs are built from, as one number: carried ones that were made
# of anything else are not used.
sources_stamp() {
    find loader kernels mapping validate load convert tests/unit tests/support \
        tests/gpu -type f ! -name '*.md' ! -name '*.py' | LC_ALL=C sort |
        xargs sha256sum | sha256sum | cut -c1-16
}

device_tests() {
    for f in tests/unit/test_device*.c; do
        basename "$f" .c
    done
}

jobs_here() {
    nproc 2>/dev/null || echo 2
}

# The card's code, or the one to carry.
gpu_arch() {
    cap=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
        sed -n '1s/[^0-9]//gp')
    case ${cap:-90} in
    90) echo 90a ;;
    *) echo "$cap" ;;
    esac
}

isa_flags() { # FILE.c
    avx2="-mavx2 -mfma -mf16c -mbmi -mbmi2"
    avx512="$avx2 -mavx512f -mavx512bw -mavx512cd -mavx512dq -mavx512vl"
    avx512="$avx512 -mavx512vbmi -mavx512vbmi2"
    case $1 in
    *_avx2.c) echo "$avx2" ;;
    *_avx512.c) echo "$avx512" ;;
    *_avx512bf16.c) echo "$avx512 -mavx512bf16" ;;
    *_shani.c) echo "-msha -mssse3 -msse4.1" ;;
    esac
}

# What mapping/embed.cmake makes, where there may be no cmake.
builtin_families() {
    families=$(find mapping/families -name '*.json' ! -name schema.json |
        LC_ALL=C sort)
    echo '#include "families_builtin.h"'
    for f in $families; do
        echo "static const unsigned char text_$(basename "$f" .json)[] = {"
        od -An -v -tx1 "$f" | sed 's/ \(..\)/0x\1,/g'
        echo '0x00};'
    done
    echo 'const struct moec_builtin_family moec_builtin_families[] = {'
    for f in $families; do
        n=$(basename "$f" .json)
        echo "{\"$n\", (const char *)text_$n, $(wc -c <"$f")},"
    done
    echo '};'
    # shellcheck disable=SC2086 # a list of words
    echo "const size_t moec_n_builtin_families = $(echo $families | wc -w);"
}

# plain_host DIR LIBS: DIR/test_device* of everything in the tree. LIBS holds
# include/ and lib/ of jansson, libcrypto, libxxhash, libyaml and cmocka, or is
# empty where the compiler finds them.
plain_host() {
    dir=$1 libs=$2
    cc=${CC:-gcc}
    flags="-O2 -std=c17 -D_GNU_SOURCE -ffp-contract=off -fvisibility=hidden"
    flags="$flags -Iloader/include"
    for d in loader kernels mapping validate load convert tests tests/support; do
        flags="$flags -I$d"
    done
    [ -z "$libs" ] || flags="$flags -I$libs/include -L$libs/lib"
    mkdir -p "$dir/obj"
    builtin_families >"$dir/obj/families_builtin.c"
    # shellcheck disable=SC2086 # a list of words
    $cc $flags -c "$dir/obj/families_builtin.c" \
        -o "$dir/obj/families_builtin.o" || return 1
    for f in $(find loader kernels mapping validate load convert -name '*.c' \
        ! -path '*/examples/*' ! -path 'convert/cli/*' ! -path '*/mpi/*' |
        LC_ALL=C sort); do
        echo "$cc $flags $(isa_flags "$f") -c $f" \
            "-o $dir/obj/$(basename "$f" .c).o"
    done | xargs -P "$(jobs_here)" -I '{}' sh -c '{}' || return 1
    rm -f "$dir/libmoec.a"
    ar rcs "$dir/libmoec.a" "$dir"/obj/*.o || return 1
    for t in $(device_tests); do
        # The paths are relative: the programs run in the tree's root.
        echo "$cc $flags -DMOEC_TEST_FIXTURES='\\\"fixtures\\\"'" \
            "-DMOEC_EMULATED_PLUGIN='\\\"$dir/libmoec_cuda_emulated.so\\\"'" \
            "-o $dir/$t tests/unit/$t.c $dir/libmoec.a -ljansson -lxxhash" \
            "-lyaml -lcrypto -lcmocka -lpthread -lm -ldl -s" \
            "-Wl,-rpath,'\\\$ORIGIN/../lib'"
    done | xargs -P "$(jobs_here)" -I '{}' sh -c '{}' || return 1
    rm -rf "$dir/obj" "$dir/libmoec.a"
}

# plain_emulated DIR: the plug-in over the host's emulation of CUDA.
plain_emulated() {
    mkdir -p "$1"
    # shellcheck disable=SC2086 # no blanks in names
    ${CXX:-g++} -O2 -x c++ -std=c++17 -ffp-contract=off -fPIC -shared \
        -fvisibility=hidden -DMOEC_EMULATE -Iloader/include -Ikernels \
        -Ikernels/cuda -o "$1/libmoec_cuda_emulated.so" kernels/cuda/*.cu \
        kernels/cuda/emulate.cc
}

# plain_device DIR ARCH: DIR/libmoec_cuda.so and DIR/bench_device.
plain_device() {
    dir=$1 arch=$2
    flags="-O3 -std=c++17 -fmad=false --expt-relaxed-constexpr"
    flags="$flags -gencode arch=compute_$arch,code=sm_$arch -cudart static"
    flags="$flags -Iloader/include -Ikernels -Ikernels/cuda"
    flags="$flags -Xcompiler=-fPIC,-fvisibility=hidden"
    mkdir -p "$dir/cu"
    {
        for f in kernels/cuda/*.cu; do
            echo "nvcc $flags -c $f -o $dir/cu/$(basename "$f" .cu).o"
        done
        echo "nvcc $flags tests/gpu/bench_device.cu -o $dir/bench_device -ldl"
    } | xargs -P "$(jobs_here)" -I '{}' sh -c '{}' || return 1
    nvcc -shared -cudart static -o "$dir/libmoec_cuda.so" "$dir"/cu/*.o \
        -Xlinker --version-script=kernels/cuda/plugin.map || return 1
    rm -rf "$dir/cu"
}
