#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# run.sh [--out FILE] [--build DIR] [--emulated] [--no-sanitizer] [--no-bench]
#
# On a machine with a CUDA device, in under 9 minutes and without a network:
# builds the plug-in, runs every device test over it, compute-sanitizer over a
# reduced set, the benchmarks and their peers, and prints one Markdown table,
# also into FILE (build/gpu/table.md). Says aloud what it leaves out. Each step
# has a limit of its own, and one that fails stops no other: the table comes
# whatever happens.
#
#   --build DIR    use what CMake built there instead of building
#   --emulated     the whole way over the emulated plug-in of DIR: tests this
#                  script; nothing in it is a figure
#   MOEC_GPU_TESTS       device tests to run (all of tests/unit/test_device*)
#   MOEC_GPU_SECONDS     give up what does not fit any more (530)
#
# Exit: 0 all ran and passed or was left out aloud, 1 something failed, 77 no
# device.
set -eu
usage() { sed -n '4,19p' "$0"; exit 2; }
out='' build='' emulated='' sanitizer=yes bench=yes
while [ $# -gt 0 ]; do
    case $1 in
    --out | --build)
        [ $# -ge 2 ] || usage
        case $2 in
        /*) path=$2 ;;
        *) path=$PWD/$2 ;;
        esac
        if [ "$1" = --out ]; then out=$path; else build=$path; fi
        shift
        ;;
    --emulated) emulated=yes ;;
    --no-sanitizer) sanitizer='' ;;
    --no-bench) bench='' ;;
    *) usage ;;
    esac
    shift
done
cd "$(dirname "$0")/../.."
. tests/gpu/gpu_build.sh

# Set and empty is CUDA's own way to hide all devices.
have_device() {
    case ${CUDA_VISIBLE_DEVICES-0} in
    '' | -1) return 1 ;;
    esac
    timeout 30 nvidia-smi -L 2>/dev/null | grep -q '^GPU' ||
        [ -e /dev/nvidia0 ]
}
if [ -z "$emulated" ] && ! have_device; then
    echo "no CUDA device on this machine: nothing was run"
    exit 77
fi
[ -z "$emulated" ] || [ -n "$build" ] || usage

started=$(date +%s)
seconds=${MOEC_GPU_SECONDS:-530}
work=build/gpu
[ -z "$build" ] || work=$build/gpu-run
[ -n "$out" ] || out=$work/table.md
rm -rf "$work/log"
mkdir -p "$work/log" "$(dirname "$out")"
notes=$work/log/notes.md
figures=$work/log/figures.jsonl
: >"$notes"
: >"$figures"
failed=0

note() {
    echo "$*"
    echo "- $*" >>"$notes"
}
fail() {
    note "FAILED: $*"
    failed=1
    : >"$work/log/failed" # from a step's shell
}
# within SECONDS COMMAND...: and never past the end of all
within() {
    limit=$1 left=$((started + seconds - $(date +%s)))
    shift
    [ "$left" -gt 2 ] || return 124
    [ "$left" -gt "$limit" ] || limit=$left
    timeout -k 5 "$limit" "$@"
}
python=$(command -v python3 || :)

# ---------------------------------------------------------------- table
# Also where a signal or a mistake of this script ends it.
# shellcheck disable=SC2317 # by the trap
write_table() {
    status=$?
    trap - EXIT
    set +e
    [ "$status" = "$failed" ] || note "FAILED: this script, status $status"
    {
        if [ -n "$emulated" ]; then
            echo "# The device's calls, emulated on the host: no timing"
        else
            echo "# Figures of one run on $(timeout 30 nvidia-smi -L 2>/dev/null |
                sed -n '1s/ (UUID.*//p')"
            timeout 30 nvidia-smi --format=csv,noheader \
                --query-gpu=driver_version,compute_cap,memory.total \
                2>/dev/null | sed 's/^/- driver, capability, memory: /'
            nvcc --version 2>/dev/null | sed -n 's/^.*release/- nvcc/p'
            command -v nvcc >/dev/null || echo "- no nvcc here"
        fi
        cat "$notes"
        echo
        if [ -n "$python" ]; then
            "$python" tests/gpu/gpu_table.py "$figures" ||
                { echo "the table failed:"; cat "$figures"; }
        else
            echo "no python3 here: figures as they came"
            cat "$figures"
        fi
    } >"$out"
    echo
    cat "$out"
    [ "$status" != 0 ] || status=$failed
    exit "$status"
}
trap write_table EXIT
trap 'exit 130' INT TERM

# -------------------------------------------------------------- build
# Ends with plugin, bench_program, and programs: the device tests.
plugin='' bench_program='' programs=''

use_programs() { # DIR
    for t in ${MOEC_GPU_TESTS:-$(device_tests)}; do
        if [ -x "$1/$t" ]; then
            programs="$programs $1/$t"
        else
            note "$t: left out, it was not built"
        fi
    done
}

use_cmake_build() { # DIR
    use_programs "$1/tests"
    if [ -n "$emulated" ]; then
        plugin=$1/tests/libmoec_cuda_emulated.so
        bench_program=$1/tests/bench_device_emulated
    else
        plugin=$1/moec/libmoec_cuda.so
        bench_program=$1/tests/gpu/bench_device
    fi
}

can_cmake() {
    command -v cmake >/dev/null && command -v pkg-config >/dev/null &&
        pkg-config --exists jansson libcrypto libxxhash yaml-0.1 cmocka
}

cmake_build() {
    within 60 cmake -S . -B "$work/cmake" -DCMAKE_BUILD_TYPE=Release -DMOEC_CUDA=ON \
        "-DMOEC_CUDA_ARCHITECTURES=$(gpu_arch)-real" || return 1
    # shellcheck disable=SC2046 # a list of words
    within 280 cmake --build "$work/cmake" --parallel "$(jobs_here)" --target \
        moe-convert moec_cuda moec_cuda_emulated bench_device $(device_tests)
}

carry=build/gpu-carry
carry_fresh() {
    [ -f $carry/stamp ] && [ "$(cat $carry/stamp)" = "$(sources_stamp)" ]
}

# The device's part from the folder or by nvcc, the tests from the folder or
# by gcc with its libraries.
plain_build() {
    fresh='' libs=''
    if carry_fresh; then
        note "tests from build/gpu-carry"
        libs=$carry fresh=yes
    elif [ -d $carry/lib ]; then
        note "build/gpu-carry is older than the tree: building anew"
        libs=$carry
    else
        note "no build/gpu-carry: only what is installed here is used"
    fi
    if [ "$fresh" ] && [ "$(cat $carry/arch 2>/dev/null)" = "$(gpu_arch)" ]
    then
        cp $carry/bin/libmoec_cuda.so $carry/bin/bench_device "$work/"
    elif command -v nvcc >/dev/null; then
        within 240 sh -c '. tests/gpu/gpu_build.sh; plain_device "$@"' sh \
            "$work" "$(gpu_arch)" >"$work/log/nvcc.log" 2>&1 || {
            tail -20 "$work/log/nvcc.log"
            fail "nvcc: see $work/log/nvcc.log"
        }
    else
        note "no nvcc: the plug-in cannot be built"
    fi
    plugin=$PWD/$work/libmoec_cuda.so
    bench_program=$work/bench_device
    if [ "$fresh" ]; then
        use_programs $carry/bin
        return
    fi
    # shellcheck disable=SC2016 # for the inner shell
    within 240 sh -c '. tests/gpu/gpu_build.sh
        plain_host "$@" && plain_emulated "$1"' sh "$work/host" "$libs" \
        >"$work/log/gcc.log" 2>&1 ||
        note "device tests cannot be built here:" \
            "$(grep -m 1 -i error "$work/log/gcc.log" || echo unknown)"
    # Their libraries are looked for beside them.
    if [ "$libs" ]; then
        mkdir -p "$work/lib"
        cp "$libs"/lib/*.so* "$work/lib/"
    fi
    use_programs "$work/host"
}

if [ -n "$build" ]; then
    use_cmake_build "$build"
elif ! carry_fresh && can_cmake &&
    cmake_build >"$work/log/cmake.log" 2>&1; then
    use_cmake_build "$work/cmake"
else
    if [ -f "$work/log/cmake.log" ]; then
        tail -20 "$work/log/cmake.log"
        fail "cmake: see $work/log/cmake.log; by gcc and nvcc alone"
    fi
    plain_build
fi
if [ ! -f "$plugin" ]; then
    fail "no plug-in was built"
fi
note "built or taken in $(($(date +%s) - started)) s"

export MOEC_TEST_PLUGIN="$plugin"
MOEC_ROOT=$PWD
export MOEC_ROOT

# -------------------------------------------------------------- tests
# At once: they are many small launches with the CPU's work between.
run_tests() {
    for p in $programs; do
        n=$(basename "$p")
        (
            st=0
            within 180 "$p" >"$work/log/$n.log" 2>&1 || st=$?
            echo $st >"$work/log/$n.status"
        ) &
    done
    wait
    for p in $programs; do
        n=$(basename "$p")
        passed=$(grep -c '^\[ *OK' "$work/log/$n.log" || :)
        case $(cat "$work/log/$n.status") in
        0) note "$n: $passed tests passed" ;;
        124 | 137) fail "$n: not done in its time, $passed tests passed" ;;
        *)
            fail "$n: status $(cat "$work/log/$n.status"), $passed passed"
            grep -E 'FAILED|ERROR|error' "$work/log/$n.log" | head -5 ||
                tail -5 "$work/log/$n.log"
            ;;
        esac
    done
}

# load_to_device NAME SOURCE OPTION...: the second of two loads, as a figure;
# the first reads files in and checks that it works at all. Status 7 is the
# caller's to tell.
load_to_device() {
    name=$1
    shift
    for _ in 1 2; do
        st=0
        within 60 "$tool" load "$@" --device cuda --plugin "$plugin" --json \
            >"$work/log/load.json" 2>"$work/log/load.log" || st=$?
        [ $st != 7 ] || return 7
        [ $st = 0 ] || {
            fail "$name: status $st, $(tail -1 "$work/log/load.log")"
            return 1
        }
    done
    rate=$(sed -n 's/.*"gb_per_s": \([0-9.]*\).*/\1/p' "$work/log/load.json")
    echo "{\"who\": \"moec\", \"kernel\": \"$name\"," \
        "\"shape\": \"$mib MiB\", \"gbps\": $rate}" >>"$figures"
}

# A rank from cached files, and of a conversion by cuFile where that is there.
run_load() {
    mib=1024
    [ -z "$emulated" ] || mib=16
    [ -n "$python" ] &&
        within 60 "$python" tests/cli/make_slice.py "$work/slice" $mib || {
        note "load: left out, no python3 here"
        return
    }
    st=0
    load_to_device "load, cached file to device" "$work/slice" --ep 1 || st=$?
    [ $st != 7 ] || fail "load: $(tail -1 "$work/log/load.log")"
    st=0
    within 60 "$tool" convert "$work/slice" "$work/converted" --ep 1 \
        >"$work/log/convert.log" 2>&1 || st=$?
    if [ $st != 0 ]; then
        fail "convert: status $st, $(tail -1 "$work/log/convert.log")"
        return
    fi
    st=0
    load_to_device "load, conversion by cuFile, digested there" \
        "$work/converted" --gds on || st=$?
    case $st in
    0) note "GPUDirect Storage: used, $(sed -n \
        's/.*"bytes_by_gds": \([0-9]*\).*/\1/p' "$work/log/load.json") bytes," \
        "$(sed -n 's/.*"n_gds_failed": \([0-9]*\).*/\1/p' \
            "$work/log/load.json") reads failed" ;;
    7) note "GPUDirect Storage: skipped, no cuFile:" \
        "$(tail -1 "$work/log/load.log")" ;;
    esac
    rm -rf "$work/slice" "$work/converted"
}

# What users run: every vector, loads, and level 3 of three checkpoints.
run_tool() {
    tool=$build/moe-convert
    [ -n "$build" ] || tool=$work/cmake/moe-convert
    if [ -z "$build" ] && carry_fresh; then
        tool=$carry/bin/moe-convert
        LD_LIBRARY_PATH=$PWD/$carry/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
        export LD_LIBRARY_PATH
    fi
    if [ ! -x "$tool" ]; then
        note "moe-convert: left out, it was not built: no selftest and no" \
            "validate on the device"
        return
    fi
    st=0
    within 60 "$tool" selftest --device cuda --plugin "$plugin" \
        >"$work/log/selftest.log" 2>&1 || st=$?
    if [ $st = 0 ]; then
        note "selftest: $(tail -1 "$work/log/selftest.log")"
    else
        fail "selftest: status $st, $(tail -1 "$work/log/selftest.log")"
    fi
    run_load
    [ -z "$emulated" ] || return 0
    if within 60 sh tests/gpu/check_validate.sh "$tool" "$plugin" \
        >"$work/log/validate.log" 2>&1; then
        note "validate: three checkpoints, and a changed byte is found"
    else
        fail "validate: $(tail -1 "$work/log/validate.log")"
    fi
}

# -------------------------------------------------- compute-sanitizer
# Over every call of the benchmark once at tiny sizes, and over align, permute
# and combine against the CPU.
sanitized() { # TOOL NAME COMMAND...
    log=$work/log/$1-$2.log tool=$1
    shift 2
    st=0
    within 100 compute-sanitizer --tool "$tool" \
        --error-exitcode 9 --print-limit 20 "$@" >"$log" 2>&1 || st=$?
    echo $st >"$log.status"
}

run_sanitizer() {
    if [ -n "$emulated" ]; then
        note "compute-sanitizer: left out, emulated"
        return
    fi
    if ! command -v compute-sanitizer >/dev/null; then
        note "compute-sanitizer: left out, it is not installed here"
        return
    fi
    permute=
    for p in $programs; do
        case $p in */test_device_permute) permute=$p ;; esac
    done
    tools='memcheck racecheck synccheck initcheck'
    for tool in $tools; do
        sanitized "$tool" calls "$bench_program" --plugin "$plugin" --tiny &
        [ -z "$permute" ] || sanitized "$tool" permute "$permute" &
    done
    wait
    for log in "$work"/log/*check-*.log; do
        n=$(basename "$log" .log)
        summary=$(grep -h 'ERROR SUMMARY\|RACECHECK SUMMARY' "$log" |
            sed 's/^=* *//' | tail -1)
        case $(cat "$log.status") in
        0) note "compute-sanitizer $n: clean (${summary:-no summary})" ;;
        124 | 137)
            note "compute-sanitizer $n: cut off," \
                "$(grep -c 'Error\|hazard' "$log" || :) findings till then"
            ;;
        *)
            if grep -q 'Device not supported' "$log"; then
                note "compute-sanitizer $n: left out, it refuses this device"
            else
                fail "compute-sanitizer $n: ${summary:-see $log}"
                grep -m 3 'Invalid\|Race\|Barrier\|Uninit\|rror' "$log" || :
            fi
            ;;
        esac
    done
}

# --------------------------------------------------------- benchmarks
run_bench() {
    tiny='' st=0
    [ -z "$emulated" ] || tiny=--tiny
    [ -x "$bench_program" ] || {
        fail "no benchmark was built"
        return
    }
    within 150 "$bench_program" --plugin "$plugin" $tiny >>"$figures" \
        2>"$work/log/bench.log" || st=$?
    [ $st = 0 ] || {
        fail "bench_device: status $st: $(tail -1 "$work/log/bench.log")"
    }
}

# Those of other people, last: nothing of ours waits for them.
run_peers() {
    if [ -n "$emulated" ]; then
        note "peers: left out, emulated"
    elif [ -z "$python" ] ||
        ! within 60 "$python" -c 'import torch' 2>/dev/null; then
        note "peers: left out, no python3 with torch here"
    else
        st=0
        within 170 "$python" tests/gpu/peers.py >>"$figures" \
            2>"$work/log/peers.log" || st=$?
        case $st in
        0) ;;
        124 | 137) note "peers: cut off by the clock" ;;
        *) note "peers: status $st: $(tail -1 "$work/log/peers.log")" ;;
        esac
    fi
}

# A step that dies leaves a note, and the rest goes on.
step() {
    before=$(date +%s)
    ("$@") || fail "$1 ended with status $?"
    [ ! -f "$work/log/failed" ] || failed=1
    note "$1: $(($(date +%s) - before)) s"
}

if [ -f "$plugin" ]; then
    step run_tests
    step run_tool
    if [ -n "$bench" ]; then
        step run_bench
    else
        note "benchmarks: left out, as asked"
    fi
    if [ -n "$sanitizer" ]; then
        step run_sanitizer
    else
        note "compute-sanitizer: left out, as asked"
    fi
    [ -z "$bench" ] || step run_peers
fi
note "$(($(date +%s) - started)) s in all"
exit $failed
