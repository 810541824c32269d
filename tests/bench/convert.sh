#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# convert.sh MOE_CONVERT DIR [GIB] [REPS]
#
# Converts a synthetic DeepSeek-V3 slice beside what the disk can do, in one
# run: an O_DIRECT copy with io_uring (the limit), cp, and the conversion, each
# followed by fsync, order rotating. Prints one table of minima and ratios.
# DIR must have room for twice GIB. Needs python3 with numpy, a C compiler.
# These machines are shared: read the ratios, not the seconds.
set -eu
[ $# -ge 2 ] || { sed -n '3,11p' "$0"; exit 2; }
tool=$1 dir=$2 gib=${3:-8} reps=${4:-3}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
mkdir -p "$dir"
src=$dir/source
log=$dir/convert.tsv
: > "$log"
[ -f "$src/config.json" ] || "$python" "$here/peers/make_big.py" "$src" \
    --preset deepseek-v3-slice --gib "$gib" --dtype fp8
${CC:-cc} -O2 -o "$dir/limits" "$here/peers/limits.c" -lcrypto -lpthread

evict() {
    "$python" - "$@" <<'PY'
import os, sys
os.sync()
for p in sys.argv[1:]:
    d = os.open(p, os.O_RDONLY)
    os.posix_fadvise(d, 0, 0, os.POSIX_FADV_DONTNEED)
PY
}

# timed NAME COMMAND...: seconds and peak memory of the whole process
timed() {
    name=$1; shift
    evict "$src"/*.safetensors
    "$python" - "$name" "$log" "$@" <<'PY'
import os, resource, subprocess, sys, time
name, log, cmd = sys.argv[1], sys.argv[2], sys.argv[3:]
t = time.monotonic()
rc = subprocess.call(cmd, stdout=subprocess.DEVNULL)
t = time.monotonic() - t
u = resource.getrusage(resource.RUSAGE_CHILDREN)
if rc:
    sys.exit(f"{name}: exit {rc}")
with open(log, "a") as f:
    f.write(f"{name}\t{t:.3f}\t{u.ru_utime + u.ru_stime:.2f}\t{u.ru_maxrss // 1024}\n")
PY
}

run_one() {
    case $1 in
    limit)
        mkdir -p "$dir/copy.tmp"
        timed limit "$dir/limits" copy "$dir/copy.tmp" 4096 16 "$src"/*.safetensors
        rm -rf "$dir/copy.tmp" ;;
    cp)
        timed cp sh -c "mkdir '$dir/cp.tmp' && cp '$src'/*.safetensors '$dir/cp.tmp' && sync '$dir'/cp.tmp/*"
        rm -rf "$dir/cp.tmp" ;;
    convert)
        timed convert "$tool" convert "$src" "$dir/out" --ep 8 --progress none
        rm -rf "$dir/out" ;;
    redundant)
        timed redundant "$tool" convert "$src" "$dir/out" --ep 8 --redundant 8 --progress none
        rm -rf "$dir/out" ;;
    esac
}

rep=0
while [ "$rep" -lt "$reps" ]; do
    case $((rep % 3)) in
    0) order="limit cp convert redundant" ;;
    1) order="convert redundant limit cp" ;;
    *) order="cp convert redundant limit" ;;
    esac
    for one in $order; do run_one "$one"; done
    rep=$((rep + 1))
done

"$python" - "$log" "$src" <<'PY'
import glob, os, statistics, sys
rows = {}
for line in open(sys.argv[1]):
    name, s, cpu, rss = line.split("\t")
    rows.setdefault(name, []).append((float(s), float(cpu), int(rss)))
size = sum(os.path.getsize(p) for p in glob.glob(sys.argv[2] + "/*.safetensors"))
best = {n: min(r[0] for r in v) for n, v in rows.items()}
what = {"limit": "O_DIRECT copy, io_uring", "cp": "cp + fsync",
        "convert": "moe-convert convert --ep 8",
        "redundant": "moe-convert convert --ep 8 --redundant 8"}
print(f"source {size / 1e9:.2f} GB, {len(next(iter(rows.values())))} runs each, cold cache")
print("| what | s min | s median | of the limit's time | of cp's time | CPU s | peak RSS MiB |")
print("|---|---|---|---|---|---|---|")
for n in ("limit", "cp", "convert", "redundant"):
    if n not in rows:
        continue
    v = rows[n]
    print(f"| {what[n]} | {best[n]:.2f} | {statistics.median(r[0] for r in v):.2f} | "
          f"{best[n] / best['limit']:.2f} | {best[n] / best['cp']:.2f} | "
          f"{min(r[1] for r in v):.1f} | {max(r[2] for r in v)} |")
PY
