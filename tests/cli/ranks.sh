#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Several processes at one output, as a launcher would start them:
#
#   sh tests/cli/ranks.sh [MIB [KILLS]]
#
# A checkpoint of MIB (48) MiB is converted by one process, then by four at the
# same time, one after the other, in other divisions, with KILLS (6) of them
# killed by -9 and started again; finalize makes of it what the one process
# made, file by file, provenance.json aside. What does not fit is refused.
#
# From the environment: MOEC_CONVERT, the program. Needs python3 (77 without).
set -u
LC_ALL=C
export LC_ALL
here=$(cd "$(dirname "$0")" && pwd)
program=${MOEC_CONVERT:-$here/../../build/dev/moe-convert}
mib=${1:-48} kills=${2:-6}
unset SLURM_PROCID OMPI_COMM_WORLD_RANK PMI_RANK RANK JOB_COMPLETION_INDEX
unset SLURM_NTASKS OMPI_COMM_WORLD_SIZE PMI_SIZE WORLD_SIZE JOB_COMPLETIONS

command -v python3 >/dev/null || exit 77
[ -x "$program" ] || {
    echo "no program at $program: build it, or set MOEC_CONVERT"
    exit 1
}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
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

same() { # but for provenance.json, and nothing else in it
    for path in want/* want/.[!.]*; do
        file=${path##*/}
        [ ! -f "$path" ] || [ "$file" = provenance.json ] ||
            cmp "$path" "out/$file" || fail "out/$file is not as in want"
    done
    [ "$(ls -A want)" = "$(ls -A out)" ] ||
        fail "out has other files than want: $(ls -A out)"
    [ ! -e out.partial ] || fail "out.partial is still there"
    rm -r out
}

refused() { # CODE WORDS COMMAND...
    want=$1 words=$2
    shift 2
    "$program" "$@" >said 2>log
    code=$?
    [ $code -eq "$want" ] || fail "$*: exit $code, not $want"
    grep -q -- "$words" log || fail "$*: does not say '$words'"
}

finish() {
    "$program" finalize out >said 2>log || fail "finalize: exit $?"
    grep -q '^out: complete, 4 ranks' said || fail "finalize says other things"
    same
}

bytes_read() { # FILES...: their sum
    sed -n 's/^ *"bytes_read": \([0-9]*\).*/\1/p' "$@" |
        awk '{ s += $1 } END { print s }'
}

python3 "$here/make_slice.py" src "$mib" || fail "no checkpoint"
options="--ep 4 --redundant 4"
convert="convert src out $options"
# shellcheck disable=SC2086 # words, here and below
"$program" convert src want $options --json >one 2>log || fail "one: exit $?"

# ------------------------------------------------------ four at the same time

for launcher in SLURM_PROCID:SLURM_NTASKS PMI_RANK:PMI_SIZE RANK:WORLD_SIZE \
    OMPI_COMM_WORLD_RANK:OMPI_COMM_WORLD_SIZE JOB_COMPLETION_INDEX:; do
    index=${launcher%:*} count=${launcher#*:}
    for k in 0 1 2 3; do
        env "$index=$k" ${count:+"$count=4"} "$program" $convert --ranks auto \
            --json >"said.$k" 2>"log.$k" &
        eval "pid$k=$!"
    done
    for k in 0 1 2 3; do
        eval "wait \$pid$k" || fail "$index $k: exit $?: $(cat "log.$k")"
    done
    [ ! -e out ] || fail "out is there before finalize"
    finish
    # Each source byte is read once in the whole job.
    one=$(bytes_read one) four=$(bytes_read said.?)
    [ "$four" -le $((one + one / 100)) ] ||
        fail "four processes read $four bytes, one reads $one"
done
echo "auto: 5 launchers, read $four bytes; one process $one"

# More processes than ranks, and fewer.
for k in 0 1 2 3 4 5; do
    RANK=$k WORLD_SIZE=6 "$program" $convert --ranks auto >said 2>log ||
        fail "process $k of 6: exit $?"
done
finish
RANK=0 WORLD_SIZE=1 "$program" $convert --ranks auto >said 2>log ||
    fail "process 0 of 1: exit $?"
"$program" finalize out >said 2>log || fail "finalize of a whole: exit $?"
grep -q 'complete already' said || fail "finalize does not say that it is done"
same

# ------------------------------------------------------------ one by one

for list in 3 0-1 2; do
    "$program" $convert --ranks $list >said 2>log || fail "ranks $list: exit $?"
    [ $list = 2 ] ||
        refused 3 'finalize again' finalize out
done
"$program" $convert --ranks 1-2 --json >said 2>log || fail "again: exit $?"
grep -q '"bytes_written": 0' said || fail "what was there is written again"
finish
"$program" $convert --ranks 0,2 >said 2>log || fail "ranks 0,2: exit $?"
refused 3 'ranks 1,3 of 4 are not converted.*--ranks 1,3' finalize out
refused 2 "slots 36, 9 a rank' then" convert src out --ep 4 --ranks 1
refused 2 "option --ep 4' then, 'option --ep 2' now" \
    convert src out --ep 2 --redundant 4 --ranks 1
refused 2 'is being converted by ranks' $convert
refused 2 'is being converted by ranks' unconvert want out
cp -r src other
refused 2 'source file' convert other out $options --ranks 1
refused 2 'there are 4 ranks, 0 to 3' $convert --ranks 3-4
refused 2 'wants numbers and ranges' $convert --ranks 1,
refused 2 'wants numbers and ranges' $convert --ranks 2-1
refused 2 'no launcher' $convert --ranks auto
refused 2 'the store has no ranks' convert src out --shard-by expert --ranks 0
[ ! -e out ] || fail "a refusal made out"
"$program" $convert --ranks 1,3 >said 2>log || fail "ranks 1,3: exit $?"
mkdir out && cp want/manifest.json out
refused 2 'exists' finalize out
"$program" finalize out --force >said 2>log || fail "finalize --force: exit $?"
same
"$program" $convert --ranks 0 --quiet >said 2>log || fail "ranks 0: exit $?"
[ ! -s said ] && [ ! -s log ] || fail "--quiet, and it speaks"
rm -r out.partial

# ------------------------------------------------------------- same rank twice

"$program" $convert --ranks 1-2 --threads 1 >said.a 2>log.a &
pid=$!
until [ -s out.partial/.moec-rank-00002 ]; do kill -0 $pid || break; done
if kill -STOP $pid 2>/dev/null && [ -s out.partial/.moec-rank-00002 ]; then
    "$program" $convert --ranks 2-3 >said 2>log
    code=$?
    # It may have been done before it was stopped.
    [ $code -eq 6 ] && grep -q 'rank 2 is being converted' log ||
        [ $code -eq 0 ] || fail "a second process at rank 2: exit $code"
    [ $code -eq 0 ] ||
        refused 6 'is still being converted' finalize out
fi
kill -CONT $pid 2>/dev/null
wait $pid || fail "the first process at rank 2: exit $?"
"$program" $convert --ranks 0,3 >said 2>log || fail "ranks 0,3: exit $?"
finish

# ------------------------------------------------------------------- kills

died=0 found=0
for round in $(seq 1 40); do
    [ $died -lt "$kills" ] || break
    for k in 0 1 2 3; do
        "$program" $convert --ranks $k --threads 1 >"said.$k" 2>"log.$k" &
        eval "pid$k=$!"
    done
    victim=$((round % 4))
    eval "pid=\$pid$victim"
    sleep "$(awk -v r="$round" 'BEGIN { printf "%.3f", 0.015 * (1 + r % 7) }')"
    kill -9 "$pid" 2>/dev/null
    for k in 0 1 2 3; do
        eval "wait \$pid$k" 2>/dev/null
        code=$?
        [ $code -ne 137 ] || [ $k -ne $victim ] || died=$((died + 1))
        [ $code -eq 0 ] || [ $k -eq $victim ] ||
            fail "rank $k beside a killed one: exit $code: $(cat "log.$k")"
    done
    "$program" $convert --ranks $victim >said 2>log ||
        fail "rank $victim again: exit $?"
    ! grep -q 'going on: [1-9]' log || found=$((found + 1))
    finish
done
echo "kills: $died in $round rounds, $found of them left work"
[ $died -ge $((kills / 2)) ] || fail "only $died kills"
