#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Signatures against the OpenSSF's own tool, both ways:
#
#   sh tests/interop/sign.sh
#
# The PyPI packages model-signing 1.1.1 and pyopenssl (which it needs and does
# not say) are put into a virtual environment, and one of each older release
# into its own, for the bundles that they wrote. What cannot be installed is
# skipped aloud: 77 without 1.1.1, a row of the table without an older one.
#
# From the environment: MOEC_CONVERT, the program; MOEC_INTEROP_VENVS, a
# directory that keeps the environments for the next time.
set -u
here=$(cd "$(dirname "$0")" && pwd)
program=${MOEC_CONVERT:-$here/../../build/dev/moe-convert}
[ -x "$program" ] || {
    echo "no program at $program: build it, or set MOEC_CONVERT"
    exit 1
}
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM
venvs=${MOEC_INTEROP_VENVS:-$scratch/venvs}
mkdir -p "$venvs" || exit 1

# venv NAME PACKAGE...: $venvs/NAME/bin/python has the packages.
venv() {
    name=$1
    shift
    [ ! -e "$venvs/$name/ready" ] || return 0
    rm -rf "${venvs:?}/$name"
    python3 -m venv "$venvs/$name" >"$scratch/log" 2>&1 &&
        "$venvs/$name/bin/python" -m pip install -q "$@" \
            >"$scratch/log" 2>&1 && touch "$venvs/$name/ready"
}

if ! venv 1.1.1 model-signing==1.1.1 pyopenssl; then
    echo "SKIPPED: model-signing 1.1.1 cannot be installed here:"
    tail -n 3 "$scratch/log"
    exit 77
fi
old=
for v in 0.2.0 0.3.1 1.0.1; do
    # Later releases of what they need are no longer what they need.
    if venv $v model-signing==$v pyopenssl 'sigstore<4' \
        sigstore-protobuf-specs==0.3.2; then
        old="$old $v=$venvs/$v/bin/python"
    else
        echo "SKIPPED: model-signing $v cannot be installed here"
    fi
done
# shellcheck disable=SC2086 # a list of words
"$venvs/1.1.1/bin/python" "$here/sign.py" "$program" \
    "$here/../../fixtures/checkpoints/olmoe" "$scratch" $old
