# SPDX-License-Identifier: Apache-2.0
# JSON of every fixture against its experts.json, which we did not write.
[ -n "$PYTHON" ] || exit 77
for d in fx/*; do
    moe-convert inspect --json "$d" --quiet >"${d#fx/}.json" || exit
done
"$PYTHON" "$(dirname "$0")/../check_inspect.py" fx ./*.json
