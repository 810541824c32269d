#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A conversion as the source of another: what comes out must be, provenance
# apart, what the original source gives, byte for byte:
#
#   sh tests/cli/store.sh [FIXTURE ...]
#
# Every fixture, generated trees with MTP layers and two with slots of several
# leaves, through an expert store and through rank layouts with other orders and
# other shared experts; then what must be refused. Two checkpoints run at a time.
#
# From the environment: MOEC_CONVERT, the program; MOEC_PYTHON, a python3 for
# the trees and the interruption (without one these are left out, and the last
# line says so).
set -u
LC_ALL=C
export LC_ALL
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
program=${MOEC_CONVERT:-$root/build/dev/moe-convert}
python=${MOEC_PYTHON:-$(command -v python3 || :)}
MOEC_CONVERT=$program MOEC_PYTHON=$python
export MOEC_CONVERT MOEC_PYTHON

fail() {
    echo "$name: $*"
    exit 1
}

convert() { # OUT SRC OPTION...
    out=$1 from=$2
    shift 2
    "$program" convert "$from" "$out" --quiet "$@" >/dev/null 2>said
}

same() { # A B WORDS
    rm -f "$1/provenance.json" "$2/provenance.json"
    diff -r "$1" "$2" >differs || fail "$3: $(head -n 3 differs)"
}

# One set of options: from the source, and from each conversion of it.
target() { # OPTION...
    convert want "$src" "$@" || fail "convert $*: $(cat said)"
    for one in from_*; do
        convert got "$one" "$@" || fail "$one, $*: $(cat said)"
        n=$((n + 1))
        same want got "$one, $*"
        rm -r got
    done
    rm -r want
}

origin() { # NAME OPTION...: a conversion to convert again
    to=$1
    shift
    convert "from_$to" "$src" "$@" || fail "convert $*: $(cat said)"
}

refused() { # EXIT TEXT SRC OPTION...
    code=$1 text=$2
    shift 2
    convert refused "$@"
    got=$?
    [ $got -eq "$code" ] || fail "$*: exit $got, not $code: $(cat said)"
    grep -q -- "$text" said || fail "$*: no '$text' in: $(cat said)"
    [ ! -e refused ] && [ ! -e refused.partial ] || fail "$*: refused, but wrote"
}

all_targets() {
    target --ep 1
    # shellcheck disable=SC2086 # words
    {
        target $both
        target $both --w13-order up-gate --max-part-bytes 4KiB
        target --shard-by expert
        target --ep 3 --allow-empty
        [ "$shared" -eq 0 ] || {
            target $both --shared-slots none
            target $both --shared-slots global
            target $both --shared-slots none --shared-store common
        }
        [ "$mtp" = no ] || target $both --no-mtp
    }
    target --ep 4 --redundant $(((4 - experts % 4) % 4))
}

few_targets() {
    # shellcheck disable=SC2086 # words
    target $both
    [ "$shared" -eq 0 ] || target --ep 1 --shared-slots none
    target --shard-by expert --w13-order up-gate
}

# --------------------------------------------------------------- the rest

# A conversion lacks what was left out, and nothing else.
left_out() {
    # shellcheck disable=SC2086 # words
    {
        convert short "$src" --shard-by expert --no-mtp || fail "$(cat said)"
        refused 3 MOE-M09 short $both
        convert want "$src" $both --no-mtp || fail "$(cat said)"
        convert got short $both --no-mtp || fail "no-mtp: $(cat said)"
        same want got "--no-mtp from --no-mtp"
    }
    rm -r want got short
}

# One wrong byte in a slot, in a copied file, in what describes them.
damage() {
    for file in $(cd from_store && ls experts-* common-*); do
        cp -r from_store bad
        size=$(wc -c <"bad/$file")
        printf '\377\376\375' | dd of="bad/$file" bs=1 conv=notrunc \
            seek=$((size / 2)) 2>/dev/null
        cmp -s "bad/$file" "from_store/$file" && fail "$file: not damaged"
        # In the middle may stand a pad, which nobody reads.
        "$program" verify bad --quiet >found
        grep -q "MOE-T3" found && refused 5 MOE-T3 bad --ep 2 &&
            hit=$((hit + 1))
        rm -r bad
    done
    [ "$hit" -gt 0 ] || fail "no damage was to be found"
    cp -r from_store bad
    echo >>bad/experts.json
    refused 5 MOE-M08 bad --ep 2
    truncate -s -1 bad/experts-00001-*
    refused 5 MOE-M05 bad --ep 2
    echo >>bad/slots.bin
    refused 5 MOE-M03 bad --ep 2
    rm -r bad
}

# Of a source with files of our names, ours and theirs stay apart.
names_taken() {
    cp -r "$src" theirs
    echo '{"name": "an extension"}' >theirs/manifest.json
    echo 'theirs' >theirs/slots.bin.txt
    echo '{}' >theirs/provenance.json
    convert store theirs --shard-by expert || fail "theirs: $(cat said)"
    convert want theirs --ep 2 || fail "theirs: $(cat said)"
    convert got store --ep 2 || fail "of theirs: $(cat said)"
    "$program" unconvert got back --quiet || fail "unconvert"
    cmp back/manifest.json theirs/manifest.json || fail "manifest.json"
    cmp back/provenance.json theirs/provenance.json || fail "provenance.json"
    same want got "a source with a manifest.json"
    rm -r theirs store want got back
}

# The description that a store was made with goes with it.
own_family() {
    cp -r "$src" theirs
    sed -i 's/"model_type": "mixtral"/"model_type": "mine"/' theirs/config.json
    sed -e 's/"family": "mixtral"/"family": "mine"/' \
        -e 's/"model_types": .*/"model_types": ["mine"],/' \
        "$root/mapping/families/mixtral.json" >mine.json
    sed 's/"about": "Mix.*/"about": "another one",/' mine.json >yours.json
    convert store theirs --shard-by expert --family mine.json ||
        fail "--family: $(cat said)"
    convert want theirs --ep 2 --family mine.json || fail "$(cat said)"
    for words in "" "--family mine.json"; do
        # shellcheck disable=SC2086 # words
        convert got store --ep 2 $words || fail "store $words: $(cat said)"
        same want got "a family of its own $words"
        rm -r got
    done
    refused 2 --family store --ep 2 --family yours.json
    rm -r theirs store want
}

# What was begun from a store goes on from that store and from nothing else.
interrupted() {
    "$python" -c "import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
os.kill(os.getpid(), signal.SIGINT)
os.execv(sys.argv[1], sys.argv[1:])" "$program" convert from_store out \
        --ep 2 --quiet 2>said
    code=$?
    [ $code -eq 130 ] && [ -e out.partial/.moec-journal ] ||
        fail "interrupted: exit $code"
    cp -r from_store other
    for from in other "$src"; do
        convert out "$from" --ep 2
        code=$?
        [ $code -eq 2 ] || fail "went on with $from: exit $code: $(cat said)"
    done
    convert out from_store --ep 2 || fail "did not go on: $(cat said)"
    convert want "$src" --ep 2 || fail "$(cat said)"
    same want out "after an interruption"
    rm -r want out other
}

# What inspect and plan say of the store.
tells() {
    "$program" inspect from_store --json --quiet >told || fail "inspect: $?"
    for word in '"converted": true' '"shard_by": "expert"' \
        "\"n_routed_experts\": $experts"; do
        grep -q "$word" told || fail "inspect: no $word"
    done
    "$program" plan "$src" --ep 2 --json --quiet >want
    "$program" plan from_store --ep 2 --json --quiet >got
    for key in bytes_total bytes_common n_files family; do
        grep "\"$key\"" want >a
        grep "\"$key\"" got >b
        cmp a b || fail "plan: $key"
    done
    rm -f want got
}

# Hundreds of small conversions wait for fsync and for nothing else: where
# memory has room, they go there.
roomy() { # DIRECTORY
    [ -w "$1" ] && [ "$(df -Pk "$1" | awk 'NR == 2 { print $4 }')" -ge 1000000 ]
}
[ -n "${TMPDIR:-}" ] || ! roomy /dev/shm || TMPDIR=/dev/shm
[ -z "${TMPDIR:-}" ] || export TMPDIR

if [ "${1:-}" = --one ]; then
    src=$2 name=${2##*/} n=0 hit=0 mtp=no
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    trap 'exit 130' INT TERM
    cd "$scratch" || exit 1
    "$program" inspect "$src" --json --quiet >facts 2>said ||
        fail "inspect: $(cat said)"
    number() {
        sed -n "s/^ *\"$1\": \([0-9]*\),*\$/\1/p" facts | head -n 1
    }
    experts=$(number n_routed_experts) shared=$(number n_shared_experts)
    grep -q '"mtp_layers": \[\]' facts || mtp=yes
    [ -n "$experts" ] && [ -n "$shared" ] || fail "no facts"
    both="--ep 2 --redundant $((2 + experts % 2))"
    origin store --shard-by expert
    # shellcheck disable=SC2086 # words
    origin ranks $both --w13-order up-gate --max-part-bytes 4KiB
    [ "$shared" -eq 0 ] || {
        origin once --ep 1 --shared-slots none --shared-store common
        origin common --shard-by expert --shared-slots none
    }
    tells
    case $name in
    wide-*) few_targets ;;
    *) all_targets ;;
    esac
    [ $mtp = no ] || left_out
    [ "$name" != mixtral ] || own_family
    case $name in qwen2_moe | wide-qwen2_moe)
        damage
        names_taken
        [ -z "$python" ] || interrupted
        ;;
    esac
    echo "$name: $n conversions of conversions"
    exit 0
fi

[ -x "$program" ] || {
    echo "no program at $program: build it, or set MOEC_CONVERT"
    exit 1
}
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM
began=$(date +%s)
if [ $# -gt 0 ]; then
    for name; do echo "$root/fixtures/checkpoints/$name"; done >"$scratch/list"
else
    [ -z "$python" ] || {
        "$python" "$root/tests/support/make_family_trees.py" \
            "$scratch/trees" deepseek_v3-nvfp4 deepseek_v4-mtp glm4_moe-lite \
            nemotron_h-super || exit 1
        for wide in gpt_oss:10 qwen2_moe:12; do
            "$python" "$root/tests/support/make_wide_tree.py" \
                "$root/fixtures/checkpoints/${wide%:*}" \
                "$scratch/trees/wide-${wide%:*}" "${wide#*:}" || exit 1
        done
    }
    ls -d "$root"/fixtures/checkpoints/* >"$scratch/list"
    [ -z "$python" ] || ls -d "$scratch"/trees/* >>"$scratch/list"
fi
xargs -n 1 -P 2 sh "$here/store.sh" --one <"$scratch/list"
code=$?
[ -n "$python" ] || echo "no python3: no trees, no interruption"
echo "$(wc -l <"$scratch/list") checkpoints in $(($(date +%s) - began)) s"
[ $code -eq 0 ]
