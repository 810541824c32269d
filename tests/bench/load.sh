#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# load.sh BUILD_DIR DIR [GIB] [REPS]
#
# One rank of eight of a synthetic DeepSeek-V3 slice into touched tensors, from
# the checkpoint and from its conversion, cold and warm, beside what disk,
# memory and SHA-256 can do with the same bytes in the same run. Prints one
# table of minima, each as a share of its limit. DIR must have room for 2.2
# times GIB; the conversion is kept for the next run. Needs python3 with numpy,
# a C compiler, and bench_load_rank and moe-convert in BUILD_DIR.
# These machines are shared: read the shares, not the seconds. RUN=COMMAND goes
# before each timed command ("chrt -r 1" keeps busy neighbours off the CPUs).
set -eu
[ $# -ge 2 ] || { sed -n '3,16p' "$0"; exit 2; }
build=$1 dir=$2 gib=${3:-8} reps=${4:-3}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
rank=3 ep=8
mkdir -p "$dir"
src=$dir/source out=$dir/ranks
log=$dir/load.tsv
: > "$log"
[ -f "$src/config.json" ] || "$python" "$here/peers/make_big.py" "$src" \
    --preset deepseek-v3-slice --gib "$gib" --dtype fp8
[ -f "$out/manifest.json" ] || "$build/moe-convert" convert "$src" "$out" \
    --ep $ep --quiet
${CC:-cc} -O2 -o "$dir/limits" "$here/peers/limits.c" -lcrypto -lpthread

# What the rank needs: joined ranges of the checkpoint, its files of the
# conversion.
(cd "$here/peers" && "$python" - "$src" $rank $ep) > "$dir/source.ranges" <<'PY'
import sys
import ckpt
cur = None
for p in ckpt.Plan(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])).pieces:
    if cur and cur[2] == p.file and cur[0] + cur[1] == p.offset:
        cur[1] += p.nbytes
        continue
    if cur:
        print(*cur)
    cur = [p.offset, p.nbytes, p.file]
print(*cur)
PY
for f in "$out"/experts-rank-0000$rank-*.safetensors; do
    echo "0 $(stat -c %s "$f") $f"
done > "$dir/ranks.ranges"

evict() {
    "$python" - "$src" "$out" <<'PY'
import glob, os, sys
os.sync()
for d in sys.argv[1:]:
    for p in glob.glob(d + "/*.safetensors"):
        f = os.open(p, os.O_RDONLY)
        os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED)
PY
}

# note NAME COMMAND...: the line of JSON that it prints
note() {
    name=$1; shift
    printf '%s\t%s\n' "$name" "$(${RUN:-} "$@" | tail -1)" >> "$log"
}

load() { # NAME DIRECTORY ARGUMENTS...
    name=$1 from=$2; shift 2
    note "$name" "$build/tests/bench_load_rank" "$from" --rank $rank --ep $ep "$@"
}

for _ in $(seq "$reps"); do
    for form in source ranks; do
        from=$src; [ $form = source ] || from=$out
        evict
        note "$form disk" "$dir/limits" ranges "$dir/$form.ranges" uring 1 4096 16
        load "$form cold" "$from" --cold
        if [ $form = ranks ]; then
            load "ranks cold none" "$from" --cold --verify none
            load "ranks cold sha256" "$from" --cold --verify sha256
        fi
        cut -d' ' -f3- "$dir/$form.ranges" | sort -u | xargs cat > /dev/null
        for t in 1 2; do
            note "$form memory" "$dir/limits" ranges "$dir/$form.ranges" \
                buffered $t 4096 1
        done
        load "$form warm" "$from"
        if [ $form = ranks ]; then
            load "ranks warm none" "$from" --verify none
            load "ranks warm sha256" "$from" --verify sha256
        fi
    done
    note "sha256 openssl" "$dir/limits" sha256
    note "sha256 ours" "$build/tests/bench_load_rank" --sha256
done

"$python" - "$log" <<'PY'
import json, sys
runs = {}
for line in open(sys.argv[1]):
    name, text = line.rstrip("\n").split("\t")
    runs.setdefault(name, []).append(json.loads(text))
best = {n: min(r, key=lambda x: x["seconds"] / x.get("bytes", 1)) for n, r in runs.items()}
need = best["source cold"]["bytes_needed"]
sha = {n: best["sha256 " + n]["bytes"] / best["sha256 " + n]["seconds"] for n in ("openssl", "ours")}
limit = {f"{f} {c}": best[f"{f} {l}"]["bytes"] / best[f"{f} {l}"]["seconds"]
         for f in ("source", "ranks") for c, l in (("cold", "disk"), ("warm", "memory"))}
print("| what | s | GB/s | of the limit | read / needed | first layer s | beyond the destination MiB |")
print("|---|---|---|---|---|---|---|")
for name, b in best.items():
    form = " ".join(name.split()[:2])
    if "bytes_needed" not in b:
        print(f"| *limit*: {name} | {b['seconds']:.3f} | {b['bytes'] / b['seconds'] / 1e9:.2f} | | | | |")
        continue
    rate = need / b["seconds"]
    share = f"{100 * rate / limit[form]:.0f} %"
    if name.startswith("ranks warm sha256"):
        share = f"{100 * rate / sha['ours']:.0f} % of SHA-256 on all cores, {rate / sha['openssl']:.2f} x OpenSSL's"
    print(f"| {name} | {b['seconds']:.3f} | {rate / 1e9:.2f} | {share} | {b['asked'] / need:.3f} "
          f"| {b['first_layer_seconds']:.3f} | {b['beyond_destination'] >> 20} |")
crc = {x["crc32"] for r in runs.values() for x in r if "crc32" in x}
print("\nCRC-32 of w13, w2 and scales:", ", ".join(sorted(crc)))
PY
