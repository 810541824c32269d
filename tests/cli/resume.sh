#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Killed at random moments, the same command again gives the same bytes:
#
#   sh tests/cli/resume.sh [KILLS [SEED [MIB]]]
#
# A checkpoint of MIB (256) MiB is converted undisturbed, then with kill -9
# after random delays until KILLS (50) processes died, of which at least three
# fifths left work that the next one went on with. Threads, memory and direct
# I/O change from run to run. Each result must be the undisturbed one, file by
# file; provenance.json aside. Then the way back in the same manner, signals,
# a changed source, changed options, and two processes at one destination.
#
# From the environment: MOEC_CONVERT, the program. Needs python3 (77 without)
# and five times MIB of disk in TMPDIR.
set -u
LC_ALL=C
export LC_ALL
here=$(cd "$(dirname "$0")" && pwd)
program=${MOEC_CONVERT:-$here/../../build/dev/moe-convert}
kills=${1:-50} seed=${2:-1} mib=${3:-256}

command -v python3 >/dev/null || exit 77
[ -x "$program" ] || {
    echo "no program at $program: build it, or set MOEC_CONVERT"
    exit 1
}
scratch=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || kill -9 $pid 2>/dev/null; rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM
cd "$scratch" || exit 1

fail() {
    echo "FAIL: $*"
    for log in log said; do
        [ ! -f $log ] || sed "s/^/$log: /" $log
    done
    ls -la . out.partial 2>/dev/null
    exit 1
}
now_ms() { echo $(($(date +%s%N) / 1000000)); }

# Numbers 0..999, the same ones for the same seed.
random() { # COUNT
    awk -v n="$1" -v s="$seed" \
        'BEGIN { srand(s); while (n--) printf "%d ", int(rand() * 1000) }'
}

same() { # WANT GOT: but for provenance.json, and nothing else in it
    for path in "$1"/* "$1"/.[!.]*; do
        file=${path##*/}
        [ ! -f "$path" ] || [ "$file" = provenance.json ] ||
            cmp "$path" "$2/$file" || fail "$2/$file is not as in $1"
    done
    [ "$(ls -A "$1")" = "$(ls -A "$2")" ] ||
        fail "$2 has other files than $1: $(ls -A "$2")"
}

# Ways to run that may differ between the runs of one conversion.
way() { # NUMBER
    case $(($1 % 6)) in
    0) echo --threads 1 ;;
    1) echo --threads 2 --no-direct ;;
    2) echo --threads 3 --memory 64MiB ;;
    3) echo --threads 8 ;;
    4) echo --threads 1 --memory 16MiB ;;
    5) echo --threads 2 ;;
    esac
}

# Kill runs of "$@ out" until $1 of them died. $span: milliseconds that an
# undisturbed one takes; $want: what it makes.
storm() { # KILLS COMMAND...
    least=$1
    shift
    died=0 found=0 done=0 runs=0
    for number in $(random $((least * 8))); do
        [ $died -lt "$least" ] || break
        runs=$((runs + 1))
        # shellcheck disable=SC2046 # words
        "$program" "$@" out $(way "$number") >said 2>log &
        pid=$!
        # What is left gets less: mostly short delays, so that more than one
        # or two processes work on each result.
        sleep "$(awk -v t="$span" -v r="$number" 'BEGIN {
            printf "%.3f", t * r / 1e6 * (r % 5 == 0 ? 1 : 0.4) }')"
        kill -9 $pid 2>/dev/null
        wait $pid 2>/dev/null
        code=$?
        pid=
        # It says so before it goes on, and dies later.
        ! grep -q 'going on: [1-9]' log || found=$((found + 1))
        if [ $code -eq 137 ]; then
            died=$((died + 1))
            [ ! -e out ] || [ ! -e out.partial ] ||
                fail "both out and out.partial"
        elif [ $code -ne 0 ]; then
            fail "$* after $died kills: exit $code"
        fi
        if [ -e out ]; then # the kill may come behind the rename
            done=$((done + 1))
            same "$want" out
            rm -r out
        fi
    done
    "$program" "$@" out >said 2>log || fail "$* in the end: exit $?"
    same "$want" out
    rm -r out
    echo "$1: $died of $runs runs killed, $found went on with work of" \
        "others, $((done + 1)) results compared"
    [ $died -ge "$least" ] || fail "only $died kills of $least"
    [ $found -ge $((least * 3 / 5)) ] || fail "only $found went on"
}

# Leave an out.partial with work in it.
leave_work() { # COMMAND...
    for number in 500 600 400 700 300 650 350 550 450 800; do
        rm -rf out out.partial
        "$program" "$@" out --threads 1 >said 2>log &
        pid=$!
        sleep "$(awk -v t="$span" -v r="$number" \
            'BEGIN { printf "%.3f", t * r / 1e6 }')"
        kill -9 $pid 2>/dev/null
        wait $pid 2>/dev/null
        pid=
        [ -s out.partial/.moec-journal ] || continue
        # a header of some KiB, and at least a hundred records' bytes
        [ "$(wc -c <out.partial/.moec-journal)" -lt 9000 ] || return 0
    done
    fail "no run of $* could be killed in its middle"
}

state() { # all there is to know of out.partial
    ls -lA --full-time out.partial
    sha256sum out.partial/.moec-journal
}

refused() { # WORD COMMAND...: exit 2, naming WORD, and nothing touched
    word=$1
    shift
    "$program" "$@" out >said 2>log
    code=$?
    [ $code -eq 2 ] || fail "$*: exit $code, not 2"
    grep -q 'out.partial belongs to another conversion' log &&
        grep -q -- "$word" log || fail "$*: does not say what differs: $word"
    [ "$(state)" = "$before" ] || fail "$*: refused, and changed out.partial"
    [ ! -e out ] || fail "$*: refused, and made out"
}

# ----------------------------------------------------------------- kills

began=$(now_ms)
python3 "$here/make_slice.py" src "$mib" || fail "no checkpoint"
convert="convert src --ep 4 --redundant 4"
# shellcheck disable=SC2086 # words, here and below
"$program" $convert want --threads 1 >said 2>log || fail "undisturbed: exit $?"
at=$(now_ms)
"$program" $convert again --threads 1 --quiet >said 2>log ||
    fail "undisturbed: exit $?"
span=$(($(now_ms) - at))
same want again
rm -r again
want=want
storm "$kills" $convert
want=src
storm $((kills / 5)) unconvert want
echo "kills: $(($(now_ms) - began)) ms, one conversion $span ms"

# -------------------------------------------------------------- refusals

leave_work $convert
before=$(state)
refused "option --ep 4' then, 'option --ep 2' now" \
    convert src --ep 2 --redundant 4
refused --w13-order $convert --w13-order up-gate
refused --max-part-bytes $convert --max-part-bytes 1MiB
refused 'slots 36' convert src --ep 4 --redundant 8
refused --shard-by convert src --shard-by expert
refused 'option --ep 4' convert src --ep 2 --redundant 4 --force
refused 'command convert' unconvert want
for file in model-00002-of-00002.safetensors config.json \
    model.safetensors.index.json; do
    [ $file = model.safetensors.index.json ] || word=$file
    [ $file != model.safetensors.index.json ] || word='source index'
    cp -p src/$file kept
    case $file in
    *.index.json) printf ' ' >>src/$file ;;
    *) touch -d '2020-02-02' src/$file ;;
    esac
    refused "$word" $convert
    case $file in # the inode decides too
    *.index.json) truncate -s -1 src/$file ;;
    *) touch -r kept src/$file ;;
    esac
done
cp -p src/config.json copy && mv copy src/config.json
refused 'source file config.json' $convert
rm -rf out.partial

# ---------------------------------------------------- signals and figures

for signal in INT:130 TERM:143; do
    for number in 400 300 500 200 600; do
        # A background job of a script ignores SIGINT: python3 does not.
        python3 - "${signal%:*}" "$(awk -v t="$span" -v r="$number" \
            'BEGIN { printf "%.3f", t * r / 1e6 }')" \
            "$program" $convert out --threads 1 <<'PYTHON' >said 2>log
import signal, subprocess, sys, time
child = subprocess.Popen(sys.argv[3:], restore_signals=True, preexec_fn=lambda:
                         signal.signal(signal.SIGINT, signal.default_int_handler))
time.sleep(float(sys.argv[2]))
child.send_signal(getattr(signal, "SIG" + sys.argv[1]))
sys.exit(child.wait())
PYTHON
        code=$?
        [ $code -ne 0 ] || { rm -r out; continue; }
        [ $code -eq "${signal#*:}" ] || continue # before its handler stood
        break
    done
    [ $code -eq "${signal#*:}" ] || fail "SIG${signal%:*}: exit $code"
    grep -q 'run the same command again to go on' log ||
        fail "SIG${signal%:*} does not say what to do"
done
"$program" $convert out --json --quiet >said 2>log || fail "goes on: exit $?"
[ ! -s log ] || fail "--quiet, and it speaks"
grep -q '"resumed_bytes": [1-9]' said || fail "no resumed_bytes in the document"
same want out
rm -r out

# --------------------------------------------------------- two at a time

"$program" $convert out --threads 1 >said 2>log &
pid=$!
until [ -e out.partial/.moec-journal ] || [ -e out ]; do :; done
kill -STOP $pid
if [ -e out.partial/.moec-journal ]; then
    "$program" $convert out >said 2>log.other
    code=$?
    [ $code -eq 6 ] || fail "a second process: exit $code, not 6"
else
    fail "the first process was done before it could be stopped"
fi
kill -CONT $pid
wait $pid || fail "the first process: exit $?"
pid=
same want out
echo "all: $(($(now_ms) - began)) ms"
