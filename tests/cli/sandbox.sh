#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Every command that has a sandbox, with tests/support/sandbox_probe.c in its
# process: what a stranger would do is refused, what the command does works,
# and --no-sandbox is no sandbox.
#
# From the environment: MOEC_CONVERT, the program; MOEC_PROBE, the module;
# MOEC_PYTHON, a python3 for recordings, and MOEC_EMULATED, a plug-in, or empty.
# 77 where this kernel has neither Landlock nor seccomp.
set -u
here=$(cd "$(dirname "$0")" && pwd)
fx=$here/../../fixtures
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM
cd "$scratch" || exit 1
mkdir work elsewhere keys hub reports new other again placed routes rec counts live
PROBE_OUTSIDE=$scratch/elsewhere/x
PROBE_SECRET=/etc/passwd
export PROBE_OUTSIDE PROBE_SECRET

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
tried=
fail() {
    echo "FAIL: $*"
    sed 's/^/    /' err
    failed=1
}
# in_it COMMAND...: succeeds, and every try of the probe's was refused.
in_it() {
    case $1 in
    placement | routes) tried="$tried $1-$2" ;;
    *) tried="$tried $1" ;;
    esac
    LD_PRELOAD=$MOEC_PROBE "$MOEC_CONVERT" "$@" >out.txt 2>err ||
        fail "$* ends with $?"
    n=$(grep -c '^probe: .* refused$' err)
    if [ "$n" != 6 ] || grep -q ALLOWED err; then
        fail "$*: $n of 6 refused"
    fi
}
out_of_it() { # WHY COMMAND...: it works, and without a sandbox.
    why=$1
    shift
    LD_PRELOAD=$MOEC_PROBE "$MOEC_CONVERT" "$@" >out.txt 2>err ||
        fail "$why ends with $?"
    grep -q '^probe: no sandbox$' err || fail "$why has one"
}

src=$fx/checkpoints/olmoe
in_it inspect "$src"
in_it plan "$src" --ep 2
in_it convert "$src" work/out --ep 2 --threads 4
in_it verify work/out --source "$src" --threads 4
in_it unconvert work/out work/back
in_it convert work/out work/again --ep 4
in_it convert "$src" work/out --ep 2 --force --no-direct
in_it validate work/out --source "$src" --tokens 8 --golden \
    "$src/golden.safetensors" --report junit=reports/v.xml
in_it check "$src" --ep 2
in_it explain work/out --layer 0 --expert 3
in_it diff work/out work/out
in_it load work/out --rank 1 --common --verify sha256 --threads 4
in_it load "$src" --rank 1 --ep 2
in_it selftest
if command -v openssl >/dev/null; then
    openssl ecparam -name prime256v1 -genkey -noout -out keys/key.pem
    openssl ec -in keys/key.pem -pubout -out keys/key.pub 2>/dev/null
    in_it sign work/out --key keys/key.pem
    in_it verify-signature work/out --key keys/key.pub
    in_it sign work/out --key keys/key.pem --signature work/o.sig
    in_it load work/out --require-signature keys/key.pub --signature work/o.sig
    in_it convert "$src" work/signed --ep 2 --sign keys/key.pem
else
    tried="$tried sign verify-signature"
fi
in_it convert "$src" work/parts --ep 2 --ranks 0
in_it convert "$src" work/parts --ep 2 --ranks 1
in_it finalize work/parts
# Placements and recordings: each file in a directory of its own.
in_it placement import --strategy round_robin new/p.json --ep 2 \
    --source "$src"
in_it placement check new/p.json --source "$src" --ep 2
in_it placement export new/p.json other/p.yaml --format trtllm --source "$src"
in_it placement show new/p.json --html other/p.html --ep 2
in_it placement import other/p.yaml again/p.json --source "$src"
in_it place work/out --placement new/p.json --out placed/out
in_it place work/out --placement new/p.json
if [ -n "${MOEC_PYTHON:-}" ]; then
    (cd routes && "$MOEC_PYTHON" "$here/make_routes.py" "$src" one) ||
        fail "make_routes.py"
    in_it routes import routes/one.json --source "$src" --out rec/r.safetensors
    cp "$src/golden.safetensors" live/
    in_it routes check rec/r.safetensors --source "$src" --logits \
        live/golden.safetensors
    in_it routes merge rec/r.safetensors rec/r.safetensors --out new/r.st
    in_it routes export new/r.st other/r.json --format sglang
    in_it stats rec/r.safetensors --source "$src" --ep 2 --placement-after \
        new/p.json --html other/s.html --counts counts/c.json
    in_it placement eplb --logical-count counts/c.json --ep 2 --source "$src" \
        --redundant 2 --out counts/p.json
else
    tried="$tried routes-import routes-check routes-merge routes-export stats"
    tried="$tried placement-eplb"
fi
# The cache of Hugging Face: links lead from snapshots/ to blobs/.
repo=hub/models--org--name
mkdir -p $repo/blobs $repo/snapshots/rev $repo/refs
printf rev >$repo/refs/main
for f in "$src"/*; do
    cp "$f" "$repo/blobs/$(basename "$f").blob"
    ln -s "../../blobs/$(basename "$f").blob" \
        "$repo/snapshots/rev/$(basename "$f")"
done
HF_HUB_CACHE=$scratch/hub
export HF_HUB_CACHE
in_it convert org/name work/hub --ep 2
in_it convert $repo/snapshots/rev work/hub2 --ep 2

# upload is tried by tests/store/test_store.py, which has a server.
for command in $("$MOEC_CONVERT" --help | sed -n 's/^  \([a-z-]*\)  .*/\1/p'); do
    case $command in
    upload) continue ;;
    placement | routes)
        for sub in $("$MOEC_CONVERT" $command --help |
            sed -n 's/^  \([a-z]*\)  .*/\1/p'); do
            case " $tried " in
            *" $command-$sub "*) ;;
            *) fail "$command $sub was not tried" ;;
            esac
        done
        continue
        ;;
    esac
    case " $tried " in
    *" $command "*) ;;
    *) fail "$command was not tried" ;;
    esac
done

out_of_it --no-sandbox verify work/out --no-sandbox
MOEC_NO_SANDBOX=1
export MOEC_NO_SANDBOX
out_of_it MOEC_NO_SANDBOX verify work/out
unset MOEC_NO_SANDBOX
# A plug-in's driver opens what it likes.
if [ -n "${MOEC_EMULATED:-}" ]; then
    out_of_it "--device cuda" selftest --device cuda --plugin "$MOEC_EMULATED"
fi
[ -z "$(ls elsewhere)" ] || fail "something was written elsewhere"
echo "$(echo $tried | wc -w) commands tried inside"
exit $failed
