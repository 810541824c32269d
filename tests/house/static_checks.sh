#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What other programs say of the sources, none of which is run by the suite:
#
#   sh tests/house/static_checks.sh BUILD [scripts|cppcheck|analyzer|tidy]...
#
#   scripts    pyflakes and shellcheck, or else whether Python and sh parse
#   cppcheck   with tests/house/cppcheck.txt, which says why what is left out
#   analyzer   gcc -fanalyzer, less the lines of tests/house/analyzer.txt
#   tidy       clang-tidy 14 with .clang-tidy; minutes
#
# BUILD is a configured build directory of gcc. A tool that is not there is
# skipped aloud. 1 where anything is found.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
build=${1:?usage: static_checks.sh BUILD [scripts|cppcheck|analyzer|tidy]...}
build=$(cd "$build" && pwd) || exit 1
shift
[ $# -gt 0 ] || set -- scripts cppcheck analyzer tidy
cd "$root" || exit 1
jobs=$(nproc 2>/dev/null || echo 2)
out=$(mktemp)
trap 'rm -f "$out"' EXIT
status=0

settle() { # NAME: nothing in $out is nothing found
    if [ -s "$out" ]; then
        cat "$out"
        echo "$1: findings above"
        status=1
    else
        echo "$1: nothing found"
    fi
}

scripts_of() { # SUFFIX: the peers' harness came as it is
    find . \( -path ./build -o -path ./.git -o -path ./tests/bench/peers \) \
        -prune -o -name "*.$1" -type f -print | LC_ALL=C sort
}

# An import that pyflakes finds unused says "noqa" where it is wanted so.
run_python() {
    if python3 -c 'import pyflakes' 2>/dev/null; then
        set -- python3 -m pyflakes
    elif command -v pyflakes3 >/dev/null; then
        set -- pyflakes3
    else
        echo "pyflakes is not installed: Python is only parsed"
        set -- python3 -c 'import ast, sys
for path in sys.argv[1:]:
    ast.parse(open(path).read(), path)'
    fi
    scripts_of py | xargs "$@" 2>&1 | while read -r said; do
        file=${said%%:*} line=${said#*:}
        sed -n "${line%%:*}p" "$file" 2>/dev/null | grep -q 'noqa' ||
            echo "$said"
    done >"$out"
    settle python
}

run_shell() {
    if command -v shellcheck >/dev/null; then
        set -- shellcheck -s sh -S warning -f gcc
    else
        echo "shellcheck is not installed: sh only parses"
        set -- sh -c 'for path; do sh -n "$path"; done' sh
    fi
    scripts_of sh | xargs "$@" >"$out" 2>&1
    settle shell
}

run_scripts() {
    run_python
    run_shell
}

run_cppcheck() {
    command -v cppcheck >/dev/null || {
        echo "cppcheck is not installed: skipped"
        return
    }
    cppcheck -q --enable=warning,performance,portability --std=c11 -j "$jobs" \
        --inline-suppr --suppressions-list=tests/house/cppcheck.txt \
        -D_GNU_SOURCE -I loader/include -I loader -I mapping -I validate \
        -I load -I store -I convert -I convert/cli -I kernels \
        --template='{file}:{line}: {severity}: {message} [{id}]' \
        loader mapping validate load store convert kernels/*.c kernels/cpu \
        >"$out" 2>&1
    settle cppcheck
}

# Each source of the library and the program, with its own flags. kernels are
# arithmetic over arrays: the analyzer finds nothing there, in an hour.
run_analyzer() {
    python3 - "$build/compile_commands.json" "$jobs" \
        tests/house/analyzer.txt >"$out" <<'PYTHON'
import concurrent.futures, json, re, shlex, subprocess, sys

def analyse(entry):
    words = shlex.split(entry["command"])
    if "ccache" in words[0]:
        words = words[1:]
    words[words.index("-o") + 1] = "/dev/null"
    words = [w for w in words if w != "-Werror"]
    words += ["-O1", "-fanalyzer", "-Wno-analyzer-too-complex"]
    done = subprocess.run(words, cwd=entry["directory"], capture_output=True,
                          text=True)
    found = [line for line in done.stderr.splitlines()
             if "-Wanalyzer" in line or "error:" in line]
    return "\n".join(line for line in found if not any(
        path in line and flag in line for path, flag in known))

with open(sys.argv[3]) as f:
    known = [line.split() for line in f
             if line.strip() and not line.startswith("//")]
with open(sys.argv[1]) as f:
    entries = [e for e in json.load(f) if re.search(
        r"/(loader|mapping|validate|load|store|convert)/", e["file"])
        and e["file"].endswith(".c") and "/tests/" not in e["file"]]
with concurrent.futures.ThreadPoolExecutor(int(sys.argv[2])) as pool:
    for said in pool.map(analyse, entries):
        if said:
            print(said)
PYTHON
    settle analyzer
}

run_tidy() {
    tool=$(command -v run-clang-tidy-14 || command -v run-clang-tidy) || {
        echo "run-clang-tidy is not installed: skipped"
        return
    }
    "$tool" -quiet -p "$build" -extra-arg=-Wno-unknown-warning-option \
        "/(loader|mapping|validate|load|store|convert|kernels)/.*[.]c$" 2>&1 |
        grep -E '(warning|error):' | sort -u >"$out"
    settle tidy
}

for tool; do
    case $tool in
    scripts | cppcheck | analyzer | tidy) "run_$tool" ;;
    *)
        echo "no check '$tool'"
        exit 2
        ;;
    esac
done
exit $status
