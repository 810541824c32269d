#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# moe-convert check as a step of a CI system; action.yml and gitlab.yml run it.
# Everything comes in through the environment, so that no value is ever parsed
# as a command:
#
#   MOEC_PATH       what to check: a source, a conversion
#   MOEC_PROGRAM    moe-convert, where it is not in the PATH; where it is
#                   nowhere, it is built from the tree that this file is in
#   MOEC_FORMAT     of stdout: github, text (the default), ...
#   MOEC_REPORTS    directory of check.log, check.sarif, check.xml and check.json
#                   (moec-reports)
#   MOEC_SUMMARY    a file that the Markdown summary is added to; or nothing
#   MOEC_EP MOEC_REDUNDANT MOEC_LEVEL MOEC_POLICY MOEC_BASELINE
#                   the options of these names, or nothing
#   MOEC_ARGS       more arguments, one a line
#
# Ends with moe-convert's exit code.
set -eu
: "${MOEC_PATH:?is what to check}"
here=$(cd "$(dirname "$0")/.." && pwd)
program=${MOEC_PROGRAM:-moe-convert}
reports=${MOEC_REPORTS:-moec-reports}
mkdir -p "$reports"

if ! command -v "$program" >/dev/null 2>&1; then
    if [ -n "${MOEC_PROGRAM:-}" ]; then
        echo "$program: no such program" >&2
        exit 2
    fi
    echo "moe-convert is not in the PATH: building it" >&2
    (
        cd "$here"
        . tests/support/deps.sh
        need_build
        install_missing
        cmake --preset release -DMOEC_TESTS=OFF
        cmake --build build/release --parallel "$(jobs_here)" \
            --target moe-convert
    ) >"$reports/build.log" 2>&1 || {
        tail -n 40 "$reports/build.log" >&2
        exit 4
    }
    program=$here/build/release/moe-convert
fi

set -- check --format "${MOEC_FORMAT:-text}" \
    --report "text=$reports/check.log" --report "sarif=$reports/check.sarif" \
    --report "junit=$reports/check.xml" --report "json=$reports/check.json"
[ -z "${MOEC_SUMMARY:-}" ] || set -- "$@" --report "markdown=$MOEC_SUMMARY"
[ -z "${MOEC_EP:-}" ] || set -- "$@" --ep "$MOEC_EP"
[ -z "${MOEC_REDUNDANT:-}" ] || set -- "$@" --redundant "$MOEC_REDUNDANT"
[ -z "${MOEC_LEVEL:-}" ] || set -- "$@" --level "$MOEC_LEVEL"
[ -z "${MOEC_POLICY:-}" ] || set -- "$@" --policy "$MOEC_POLICY"
[ -z "${MOEC_BASELINE:-}" ] || set -- "$@" --baseline "$MOEC_BASELINE"
while IFS= read -r line; do
    [ -z "$line" ] || set -- "$@" "$line"
done <<END
${MOEC_ARGS:-}
END
if [ -n "${GITHUB_OUTPUT:-}" ]; then
    for form in log sarif xml json; do
        echo "$form=$reports/check.$form"
    done >>"$GITHUB_OUTPUT"
fi
exec "$program" "$@" -- "$MOEC_PATH"
