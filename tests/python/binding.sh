#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The Python binding, its declarations made of the headers as a wheel's are,
# over the library of this build.
# usage: binding.sh LIBRARY OUTDIR     Environment: MOEC_ROOT, MOEC_PYTHON
set -eu
[ -n "$MOEC_PYTHON" ] || {
    echo "no python with numpy: tests/run.sh finds one"
    exit 77
}
rm -rf "$2"
mkdir -p "$2"
cp -r "$MOEC_ROOT/python/moec" "$2/moec"
"$MOEC_PYTHON" "$MOEC_ROOT/python/make_abi.py" "$MOEC_ROOT" "$2/moec/_abi.py"
MOEC_LIBRARY=$1 PYTHONPATH=$2 \
    exec "$MOEC_PYTHON" "$MOEC_ROOT/tests/python/test_binding.py"
