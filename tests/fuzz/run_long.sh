#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# All fuzz targets for a while, and a table of what came of it (results.md has
# what was run):
#
#   SECONDS_EACH=300 sh tests/fuzz/run_long.sh DIR NAME,BYTES=SEEDS[:SEEDS] ...
#
# DIR has the programs fuzz_NAME and keeps what they learn in DIR/fuzz/NAME
# from one time to the next; findings stay there as crash-*, leak-*, timeout-*,
# and make it fail. BYTES is the longest input. JOBS targets run at a time (the
# CPUs there are).
#
# usage: as cmake --build build/fuzz --target fuzz-long calls it
set -u
dir=$1
shift
seconds=${SECONDS_EACH:-300}
jobs=${JOBS:-$(nproc)}
work=$dir/fuzz
mkdir -p "$work"
# Half of the time went into stacks of allocations, which a finding's second
# run prints as well.
ASAN_OPTIONS=${ASAN_OPTIONS:-malloc_context_size=3:quarantine_size_mb=16}
export ASAN_OPTIONS

one() { # NAME BYTES SEEDS
    name=$1
    mkdir -p "$work/$name/corpus" "$work/$name/found" "$work/$name/seeds"
    echo "$3" | tr ':' '\n' | while read -r path; do
        if [ -d "$path" ]; then
            find "$path" -type f -exec cp {} "$work/$name/seeds" \;
        else
            # Many are called config.json.
            cp "$path" "$work/$name/seeds/$(echo "$path" | tr '/' '-')"
        fi
    done
    "$dir/fuzz_$name" -max_total_time="$seconds" -print_final_stats=1 \
        -rss_limit_mb=2048 -timeout=10 -max_len="$2" \
        -artifact_prefix="$work/$name/found/" \
        "$work/$name/corpus" "$work/$name/seeds" >"$work/$name/log" 2>&1
    echo $? >"$work/$name/rc"
    executed "$name" >>"$work/$name/executions"
}

executed() { # NAME: what its last run did
    sed -n 's/^stat::number_of_executed_units: *//p' "$work/$1/log"
}

running=0
for word in "$@"; do
    head=${word%%=*}
    one "${head%,*}" "${head#*,}" "${word#*=}" &
    running=$((running + 1))
    if [ "$running" -ge "$jobs" ]; then
        wait
        running=0
    fi
done
wait

failed=0
all=0
echo "| target | executions | a second | coverage | features | corpus | findings |"
echo "|---|---|---|---|---|---|---|"
for word in "$@"; do
    name=${word%%,*}
    log=$work/$name/log
    n=$(executed "$name")
    rate=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")
    # The last line that tells: "#8192 pulse cov: 512 ft: 1024 corp: 99/12Kb".
    last=$(grep ' cov: ' "$log" | tail -n 1)
    cov=$(echo "$last" | sed -n 's/.* cov: \([0-9]*\).*/\1/p')
    ft=$(echo "$last" | sed -n 's/.* ft: \([0-9]*\).*/\1/p')
    corpus=$(echo "$last" | sed -n 's/.* corp: \([0-9]*\).*/\1/p')
    found=$(find "$work/$name/found" -type f | wc -l)
    [ "$(cat "$work/$name/rc")" = 0 ] && [ "$found" = 0 ] || failed=1
    all=$((all + ${n:-0}))
    echo "| $name | ${n:-died} | ${rate:--} | ${cov:--} | ${ft:--} |" \
        "${corpus:--} | $found |"
done
echo "$all executions, $seconds s a target;" \
    "$(cat "$work"/*/executions | awk '{ n += $1 } END { print n }') of all runs"
exit $failed
