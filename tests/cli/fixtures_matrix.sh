#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Every fixture through convert, verify --source, the independent layout check
# and back, compared byte for byte:
#
#   sh tests/cli/fixtures_matrix.sh [FIXTURE ...]
#
# W in {1, 2, 4, 8}; of R the values 0, the least above 0 that fits, and one
# above E; then the options that change bytes, a random placement, and one
# thread against many. What does not divide must be refused with exit 3 and
# leave nothing behind. Two fixtures run at a time.
#
# From the environment: MOEC_CONVERT, the program; MOEC_PYTHON, a python3 for
# the layout check and the placements (without one these two are left out, and
# the last line says so).
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

fact() { # KEY: an integer of experts.json's facts
    sed -n "/\"facts\"/,/\"layers\": {/s/^  \"$1\": \([0-9]*\),*$/\1/p" \
        "$src/experts.json" | head -n 1
}

# All that a conversion copies or converts must come back.
compare_back() {
    for path in "$src"/*; do
        file=${path##*/}
        # What no index names is neither read nor copied.
        [ "$file" = golden.safetensors ] ||
            cmp "$path" back/"$file" || fail "$*: $file did not come back"
    done
    for path in back/*; do
        [ -f "$src/${path##*/}" ] || fail "$*: ${path##*/} came from nowhere"
    done
}

# One combination. $check holds the words for check_layout.py, or "no"; $back
# is "refused" where unconvert must exit 3.
one() { # OPTION...
    n=$((n + 1))
    "$program" convert "$src" "out$n" "$@" --quiet || fail "convert $*: exit $?"
    "$program" verify "out$n" --source "$src" --quiet >found ||
        fail "verify $*: exit $?: $(tail -n 5 found)"
    if [ "$back" = refused ]; then
        "$program" unconvert "out$n" back --quiet 2>/dev/null
        [ $? -eq 3 ] || fail "unconvert $*: not refused with exit 3"
        [ ! -e back ] || fail "unconvert $*: refused, but wrote"
    else
        "$program" unconvert "out$n" back --quiet || fail "unconvert $*: $?"
        compare_back "$@"
        rm -r back
    fi
    if [ "$check" != no ]; then
        echo "out$n $check" >>checks
    else
        rm -r "out$n"
    fi
}

refused() { # OPTION...
    "$program" convert "$src" refused "$@" --quiet 2>/dev/null
    [ $? -eq 3 ] || fail "convert $*: not refused with exit 3"
    [ ! -e refused ] && [ ! -e refused.partial ] ||
        fail "convert $*: refused, but wrote"
}

grid() {
    for w in 1 2 4 8; do
        fit=$(((w - experts % w) % w))
        least=$((fit > 0 ? fit : w))
        above=$((least + (experts / w + 1) * w))
        [ $fit -eq 0 ] || refused --ep $w
        for r in 0 $least $above; do
            [ $(((experts + r) % w)) -eq 0 ] || continue
            check="--ep $w --redundant $r"
            # shellcheck disable=SC2086 # words
            one $check
        done
        [ $w -eq 1 ] || refused --ep $w --redundant $((least + 1))
    done
}

# A random total map for every decoder layer and MTP layer, E + R slots.
random_placement() { # R SEED
    "$python" - "$src/experts.json" "$1" "$2" <<'PYTHON' >placement.json
import json, random, sys
facts = json.load(open(sys.argv[1]))["facts"]
r, rng = int(sys.argv[2]), random.Random(int(sys.argv[3]))
e, rows = facts["E"], facts["layers"] + len(facts.get("mtp_layers") or [])
table = []
for _ in range(rows):
    row = list(range(e)) + [rng.randrange(e) for _ in range(r)]
    rng.shuffle(row)
    table.append(row)
print(json.dumps({"physical_to_logical_map": table}))
PYTHON
}

options() {
    r=$((2 + experts % 2))
    both="--ep 2 --redundant $r"
    # shellcheck disable=SC2086 # words
    {
        check="$both --w13-order up-gate" && one $check
        if [ "$shared" -ne 0 ]; then
            check="$both --shared-slots none" && one $check
            check="$both --shared-slots global" && one $check
            check="$both --shared-slots none"
            one $both --shared-store common
        else
            check="$both" && one $both --shared-slots per-rank
        fi
        if grep -q '"mtp_layers": \[$' \
            "$src/experts.json"; then
            check="$both --no-mtp" back=refused
            one $check
            back=same
        fi
        check="$both"
        one $both --max-part-bytes 4KiB
        check=no
        one --shard-by expert
        one --shard-by expert --w13-order up-gate --max-part-bytes 4KiB
        one --ep 3 --allow-empty
        if [ -n "$python" ]; then
            random_placement $r 1
            check="$both --placement placement.json" && one $check
            random_placement $((experts + 2 * r)) 2
            check="--ep 1 --redundant $((experts + 2 * r)) --w13-order up-gate"
            check="$check --placement placement2.json"
            mv placement.json placement2.json
            random_placement $r 1
            one $check
        fi
    }
}

# The bytes do not depend on how many threads wrote them.
threads() {
    for t in 1 4; do
        "$program" convert "$src" "t$t" --ep 2 --redundant "$r" --quiet \
            --threads $t || fail "convert --threads $t: exit $?"
        rm -f "t$t/provenance.json"
    done
    diff -r t1 t4 || fail "one thread and four wrote different bytes"
}

# check_layout.py once for all combinations: python starts once.
layouts() {
    [ -n "$python" ] || return 0
    "$python" - "$root/tests/checks" "$src" checks <<'PYTHON' ||
import contextlib, io, sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
import check_layout
src, bad, n = sys.argv[2], 0, 0
for line in open(sys.argv[3]):
    words = line.split()
    check_layout.findings.clear()
    sys.argv = ["check_layout.py", words[0], src] + words[1:]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = check_layout.main()
    n += 1
    if code:
        bad += 1
        print(" ".join(words[1:]) + ":\n" + said.getvalue())
sys.exit(1 if bad or not n else 0)
PYTHON
        fail "the layout check disagrees"
}

# Hundreds of small conversions, each with its fsyncs, wait for the disk and for
# nothing else: where memory has room, they go there.
roomy() { # DIRECTORY
    [ -w "$1" ] && [ "$(df -Pk "$1" | awk 'NR == 2 { print $4 }')" -ge 1000000 ]
}
[ -n "${TMPDIR:-}" ] || ! roomy /dev/shm || TMPDIR=/dev/shm
[ -z "${TMPDIR:-}" ] || export TMPDIR

if [ "${1:-}" = --one ]; then
    name=$2
    src=$root/fixtures/checkpoints/$name
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    trap 'exit 130' INT TERM
    cd "$scratch" || exit 1
    experts=$(fact E) shared=$(fact shared_width) n=0 back=same
    [ -n "$experts" ] && [ -n "$shared" ] || fail "no facts in experts.json"
    grid
    options
    threads
    layouts
    checked=$([ -z "$python" ] || wc -l <checks)
    echo "$name: $n conversions, all proved and taken back," \
        "${checked:-0} layouts checked"
    exit 0
fi

[ -x "$program" ] || {
    echo "no program at $program: build it, or set MOEC_CONVERT"
    exit 1
}
# shellcheck disable=SC2046 # a list of words
[ $# -gt 0 ] || set -- $(ls "$root/fixtures/checkpoints")
began=$(date +%s)
printf '%s\n' "$@" | xargs -n 1 -P 2 sh "$here/fixtures_matrix.sh" --one
code=$?
[ -n "$python" ] || echo "no python3: layouts and placements are not checked"
echo "$# fixtures in $(($(date +%s) - began)) s"
[ $code -eq 0 ]
