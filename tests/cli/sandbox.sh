#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Every command that has a sandbox, with tests/support/sandbox_probe.c in its
# process: what a stranger would do is refused, what the command does works,
# and --no-sandbox is no sandbox.
#
# From the environment: MOEC_CONVERT, the program; MOEC_PROBE, the module.
# 77 where this kernel has neither Landlock nor seccomp.
set -u
here=$(cd "$(dirname "$0")" && pwd)
fx=$here/../../fixtures
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM
cd "$scratch" || exit 1
mkdir work elsewhere keys hub
PROBE_OUTSIDE=$scratch/elsewhere/x
export PROBE_OUTSIDE

said=$("$MOEC_CONVERT" inspect "$fx/checkpoints/olmoe" -q -v -v 2>&1 >/dev/null |
    grep 'sandbox:')
echo "$said"
case $said in
*"Landlock 0"* | *"seccomp off"*)
    echo "SKIPPED: this kernel, or this build, does not have both"
    exit 77
    ;;
esac

failed=0
tried=0
fail() {
    echo "FAIL: $*"
    sed 's/^/    /' err
    failed=1
}
# in_it COMMAND...: succeeds, and every try of the probe's was refused.
in_it() {
    tried=$((tried + 1))
    LD_PRELOAD=$MOEC_PROBE "$MOEC_CONVERT" "$@" >out.txt 2>err ||
        fail "$* ends with $?"
    n=$(grep -c '^probe: .* refused$' err)
    if [ "$n" != 6 ] || grep -q ALLOWED err; then
        fail "$*: $n of 6 refused"
    fi
}

in_it inspect "$fx/checkpoints/olmoe"
in_it plan "$fx/checkpoints/olmoe" --ep 2
in_it convert "$fx/checkpoints/olmoe" work/out --ep 2 --threads 4
in_it verify work/out --source "$fx/checkpoints/olmoe" --threads 4
in_it unconvert work/out work/back
in_it convert work/out work/again --ep 4
in_it convert "$fx/checkpoints/olmoe" work/out --ep 2 --force --no-direct
if command -v openssl >/dev/null; then
    openssl ecparam -name prime256v1 -genkey -noout -out keys/key.pem
    openssl ec -in keys/key.pem -pubout -out keys/key.pub 2>/dev/null
    in_it sign work/out --key keys/key.pem
    in_it verify-signature work/out --key keys/key.pub
    in_it sign work/out --key keys/key.pem --signature work/o.sig
    in_it convert "$fx/checkpoints/olmoe" work/signed --ep 2 --sign keys/key.pem
fi
(cd work && in_it convert "$fx/checkpoints/olmoe" parts --ep 2 --ranks 0 &&
    in_it convert "$fx/checkpoints/olmoe" parts --ep 2 --ranks 1 &&
    in_it finalize parts && exit $failed) || failed=1
tried=$((tried + 3))
# The cache of Hugging Face: links lead from snapshots/ to blobs/.
repo=hub/models--org--name
mkdir -p $repo/blobs $repo/snapshots/rev $repo/refs
printf rev >$repo/refs/main
for f in "$fx"/checkpoints/olmoe/*; do
    cp "$f" "$repo/blobs/$(basename "$f").blob"
    ln -s "../../blobs/$(basename "$f").blob" \
        "$repo/snapshots/rev/$(basename "$f")"
done
HF_HUB_CACHE=$scratch/hub
export HF_HUB_CACHE
in_it convert org/name work/hub --ep 2
in_it convert $repo/snapshots/rev work/hub2 --ep 2

LD_PRELOAD=$MOEC_PROBE "$MOEC_CONVERT" verify work/out --no-sandbox \
    >out.txt 2>err || fail "verify --no-sandbox"
grep -q '^probe: no sandbox$' err || fail "--no-sandbox has one"
[ -z "$(ls elsewhere)" ] || fail "something was written elsewhere"
echo "$tried commands tried inside"
exit $failed
