#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The wheel as a user builds and installs it: pip wheel, a fresh environment
# without torch, the binding's tests over what is inside the wheel.
# usage: wheel.sh OUTDIR     Needs the package index; 77 where there is none.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
python=${MOEC_PYTHON:-python3}
rm -rf "$out/venv" "$out/dist"
"$python" -m venv "$out/venv"
"$out/venv/bin/pip" install -q --upgrade pip || exit 77
"$out/venv/bin/pip" wheel -q --no-deps -w "$out/dist" "$root"
"$out/venv/bin/pip" install -q "$out"/dist/moec-*.whl
ls -l "$out"/dist
cd "$out"
MOEC_ROOT=$root MOEC_CONVERT=$out/venv/bin/moe-convert \
    "$out/venv/bin/python" "$root/tests/python/test_binding.py"
"$out/venv/bin/moe-convert" --version
