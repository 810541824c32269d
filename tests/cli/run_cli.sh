#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The command line against goldens:
#
#   sh tests/cli/run_cli.sh [--update] [CMD/CASE ...]
#
# A case is tests/cli/CMD/CASE.sh. It runs in an empty scratch directory with
#   moe-convert   the program, in PATH
#   fx            a link to fixtures/checkpoints
#   $PYTHON       a python3, or empty
# and is compared with CASE.exit (absent: 0), CASE.stdout and CASE.stderr
# (absent: nothing). 77 skips. What differs between runs (paths, seconds,
# threads, buffers) is made equal first; JSON is compared parsed where there
# is a python3. --update writes the goldens anew: look at the diff.
#
# From the environment: MOEC_CONVERT, the program; MOEC_PYTHON, a python3.
set -u
LC_ALL=C
export LC_ALL
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
program=${MOEC_CONVERT:-$root/build/dev/moe-convert}
PYTHON=${MOEC_PYTHON:-$(command -v python3 || :)}
# The program must see the test's own world: no cache of the user's, no
# terminal settings, no option order of POSIXLY_CORRECT.
unset POSIXLY_CORRECT HF_HUB_CACHE HF_HOME XDG_CACHE_HOME
HOME=/nonexistent
export PYTHON HOME
update=
if [ "${1:-}" = --update ]; then
    update=1
    shift
fi
if [ ! -x "$program" ]; then
    echo "no program at $program: build it, or set MOEC_CONVERT"
    exit 1
fi

tmp=$(mktemp -d) || exit 1
trap 'chmod -R u+w "$tmp"; rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM
tmp=$(cd "$tmp" && pwd -P)
mkdir "$tmp/bin"
ln -s "$program" "$tmp/bin/moe-convert"
PATH=$tmp/bin:$PATH
export PATH

# What a golden cannot hold.
normalise() { # FILE
    # ROOT only as a whole: a clone in /src is no part of "TMP/src".
    sed -e "s,$tmp/scratch,TMP,g" -e "s,\(^\|[^A-Za-z0-9_]\)$root/,\1ROOT/,g" \
        -e 's,\("seconds"\|"gb_per_s"\): [0-9.e+-]*,\1: 0,' \
        -e 's,\("n_threads"\|"peak_memory_bytes"\): [0-9]*,\1: 0,' \
        -e 's,^peak memory .*,peak memory  N,' \
        -e 's/, [0-9.]* s, [0-9.]* GB\/s/, N s, N GB\/s/' \
        -e 's/^read .* of the files, \(.*\), peak .*/read N, \1, peak N/' \
        -e 's,\("peak_rss_bytes"\|"bytes_cached"\|"n_requests"\): [0-9]*,\1: 0,' \
        -e 's,\("seconds_first_layer"\): [0-9.e+-]*,\1: 0,' \
        -e 's,\("io_uring"\|"direct"\): [a-z]*,\1: false,' "$1"
}

# Sorted keys and nothing of the spelling; text that is no JSON as it is.
canonical() { # FILE
    if [ -n "$PYTHON" ] && head -c 1 "$1" | grep -q '{'; then
        "$PYTHON" -c 'import json, sys
try:
    text = open(sys.argv[1]).read()
    print(json.dumps(json.loads(text), indent=1, sort_keys=True))
except ValueError:
    print(text, end="")' "$1"
    else
        cat "$1"
    fi
}

# Compare one stream with its golden, or write the golden.
stream() { # CASE NAME
    normalise "$tmp/$2" >"$tmp/$2.got"
    if [ -n "$update" ]; then
        if [ -s "$tmp/$2.got" ]; then
            cp "$tmp/$2.got" "$here/$1.$2"
        else
            rm -f "$here/$1.$2"
        fi
        return 0
    fi
    : >"$tmp/$2.want"
    [ ! -f "$here/$1.$2" ] || cp "$here/$1.$2" "$tmp/$2.want"
    canonical "$tmp/$2.got" >"$tmp/$2.got.c"
    canonical "$tmp/$2.want" >"$tmp/$2.want.c"
    if ! cmp -s "$tmp/$2.want.c" "$tmp/$2.got.c"; then
        echo "$1: $2 differs (- golden, + now)"
        diff -u "$tmp/$2.want.c" "$tmp/$2.got.c" | sed -n '3,40p'
        return 1
    fi
}

exit_code() { # CASE CODE
    want=0
    [ ! -f "$here/$1.exit" ] || want=$(cat "$here/$1.exit")
    if [ -n "$update" ]; then
        rm -f "$here/$1.exit"
        [ "$2" -eq 0 ] || echo "$2" >"$here/$1.exit"
    elif [ "$want" -ne "$2" ]; then
        echo "$1: exit $2, expected $want"
        return 1
    fi
}

run_case() { # CASE
    rm -rf "$tmp/scratch"
    mkdir "$tmp/scratch"
    ln -s "$root/fixtures/checkpoints" "$tmp/scratch/fx"
    (cd "$tmp/scratch" && exec sh "$here/$1.sh") \
        >"$tmp/stdout" 2>"$tmp/stderr" </dev/null
    code=$?
    if [ $code -eq 77 ]; then
        echo "$1: skipped"
        skipped=$((skipped + 1))
        return 0
    fi
    bad=0
    exit_code "$1" $code || bad=1
    stream "$1" stdout || bad=1
    stream "$1" stderr || bad=1
    return $bad
}

# shellcheck disable=SC2046 # a list of words
[ $# -gt 0 ] || set -- $(cd "$here" && ls ./*/*.sh | sed 's,^\./,,; s,\.sh$,,')
passed=0 failed=0 skipped=0
for name; do
    if run_case "${name%.sh}"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
    fi
done
echo "$((passed - skipped)) passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
