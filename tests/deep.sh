#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What takes longer than the suite. Each word is one check, configured and
# built here, with its own summary; behind the last one a line for each:
#
#   sh tests/deep.sh [asan|tsan|static|coverage|memcheck|fuzz]...
#
#   asan      every test under AddressSanitizer, LeakSanitizer, UBSan
#   tsan      every test under ThreadSanitizer
#   static    clang-tidy, cppcheck, gcc -fanalyzer, the scripts' own
#   coverage  every test; branches of the parsers taken, 95 % at least
#   memcheck  the tests under valgrind
#   fuzz      every fuzz target, SECONDS_EACH of them
#
# Without a word: all of them. From the environment: JOBS (the CPUs there are);
# MOEC_PYTHON, a python3 with numpy (without one, what needs it is skipped).
# 1 where one of them found something.
set -u
cd "$(dirname "$0")/.." || exit 1
. tests/support/deps.sh
JOBS=${JOBS:-$(jobs_here)}
export JOBS
python=${MOEC_PYTHON:-}
for one in "$(pwd)/build/venv/bin/python" python3 /usr/bin/python3; do
    [ -n "$python" ] || ! "$one" -c 'import numpy' 2>/dev/null ||
        python=$(command -v "$one")
done

configure() { # PRESET
    cmake --preset "$1" "-DMOEC_PYTHON=$python" >/dev/null
}

tested() { # PRESET
    configure "$1" && cmake --build --preset "$1" --parallel "$JOBS" &&
        ctest --preset "$1" --parallel "$JOBS"
}

target() { # PRESET TARGET
    configure "$1" && cmake --build --preset "$1" --parallel "$JOBS" &&
        cmake --build --preset "$1" --target "$2"
}

check() { # WORD
    case $1 in
    asan | tsan) tested "$1" ;;
    static) configure dev && cmake --build --preset dev --target static-checks ;;
    coverage) target coverage coverage ;;
    memcheck) target dev memcheck ;;
    fuzz) target fuzz fuzz-long ;;
    *)
        echo "no check '$1'"
        return 2
        ;;
    esac
}

[ $# -gt 0 ] || set -- static asan tsan coverage memcheck fuzz
bad=0
said=
for word; do
    began=$(date +%s)
    if check "$word"; then verdict="nothing found"; else
        verdict="FINDINGS above"
        bad=1
    fi
    said="$said$(printf '%-9s %s, %d s' "$word" "$verdict" \
        $(($(date +%s) - began)))
"
done
printf '\n%s' "$said"
exit $bad
