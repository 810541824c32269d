#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# place.sh MOE_CONVERT DIR [GIB] [REPS]
#
# A conversion of GIB (8) placed anew with 5 % of its slots changed, beside a
# cp of the whole conversion and a copy of as many bytes as change, each with
# its fsync, in turn. Prints seconds and the ratio of minima. DIR's file system
# decides: with reflinks (btrfs, XFS) the copy of the changed bytes is the
# measure, without them the cp. DIR must have room for three times GIB. Needs
# python3 with numpy.
set -eu
[ $# -ge 2 ] || { sed -n '3,12p' "$0"; exit 2; }
tool=$1 dir=$2 gib=${3:-8} reps=${4:-3}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
tool=$(cd "$(dirname "$tool")" && pwd)/$(basename "$tool")
mkdir -p "$dir"
cd "$dir"
if [ ! -f conv/manifest.json ]; then
    "$python" "$here/peers/make_big.py" src --preset deepseek-v3-slice \
        --gib "$gib" --dtype fp8
    "$python" - src <<'PY'
import json, random, sys
c = json.load(open(sys.argv[1] + "/config.json"))
e, layers = c["n_routed_experts"], c["num_hidden_layers"]
random.seed(5)
old = [random.sample([*range(e), *range(e // 4)], e + e // 4) for _ in range(layers)]
new = [list(r) for r in old]
for r in new:
    at = []
    while len({r[k] for k in at}) < 2:
        at = random.sample(range(len(r)), max(2, round(len(r) * 0.05)))
    for a, v in zip(at, [r[k] for k in at[1:] + at[:1]]):
        r[a] = v
for name, rows in ("a.json", old), ("b.json", new):
    json.dump({"physical_to_logical_map": rows}, open(name, "w"))
PY
    "$tool" convert src conv --ep 4 --placement a.json -q 2>/dev/null
    rm -rf src
fi
"$tool" place conv --placement b.json --dry-run 2>/dev/null
changed=$("$tool" place conv --placement b.json --dry-run --json 2>/dev/null |
    sed -n 's/.*"bytes_changed": \([0-9]*\).*/\1/p')
now() { date +%s.%N; }
took() { awk -v n="$1" -v a="$2" -v b="$(now)" \
    'BEGIN { printf "%-14s %8.2f s\n", n, b - a }'; }
for _ in $(seq "$reps"); do
    rm -rf copy new bytes && sync
    t=$(now)
    cp -r --reflink=never conv copy && sync -f copy
    took cp "$t"
    rm -rf copy && sync
    t=$(now)
    cat conv/experts-* | head -c "$changed" > bytes && sync bytes
    took "changed bytes" "$t"
    t=$(now)
    "$tool" place conv --placement b.json --out new -q 2>/dev/null
    took place "$t"
done | tee times
awk '{ k = $0; sub(/ +[0-9.]+ s$/, "", k); s = $(NF - 1)
       if (!(k in m) || s < m[k]) m[k] = s }
     END { printf "place takes %.2f of cp, %.2f of copying the changed bytes\n",
           m["place"] / m["cp"], m["place"] / m["changed bytes"] }' times
