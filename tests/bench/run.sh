#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# run.sh BUILD DIR [SECTION...]     sections: plan convert verify kernels load
#
# Every figure beside its limit or its peer, measured in this one run, as one
# Markdown document on stdout. BUILD is a release build (build/release), DIR has
# room for three times GIB (8). PEERS_PYTHON names a python with
# peers/requirements.txt; without one the rows of other people's libraries are
# left out, aloud. These machines are shared: read the ratios.
set -eu
[ $# -ge 2 ] || { sed -n '4,11p' "$0"; exit 2; }
build=$1 dir=$2
shift 2
sections=${*:-plan convert verify kernels load}
here=$(cd "$(dirname "$0")" && pwd)
tool=$build/moe-convert
python=${PYTHON:-${PEERS_PYTHON:-python3}}
gib=${GIB:-8} reps=${REPS:-4}
mkdir -p "$dir"

has_peers() {
    [ -n "${PEERS_PYTHON:-}" ] &&
        "$PEERS_PYTHON" -c 'import torch, safetensors' 2>/dev/null
}

echo "# Figures of one run"
echo
echo "- $("$tool" --version | head -1)"
echo "- CPU: $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)," \
    "$(nproc) cores; $(sed -n 's/^MemTotal: *//p' /proc/meminfo)"
has_peers || echo "- no PEERS_PYTHON with torch: rows of other people's" \
    "libraries are left out"

# least REPS COMMAND...: the least seconds of a whole process, and its peak MiB
least() {
    "$python" - "$@" <<'PY'
import os, subprocess, sys, time
reps, cmd = int(sys.argv[1]), sys.argv[2:]
best, peak = 1e9, 0
for _ in range(reps):
    t = time.monotonic()
    p = subprocess.Popen(cmd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(p.pid, 0)
    best = min(best, time.monotonic() - t)
    peak = max(peak, usage.ru_maxrss // 1024)
    if status:
        sys.exit(f"{cmd}: status {status}")
print(f"{best:.3f} | {peak}")
PY
}

bench_plan() {
    echo; echo "## Plan: headers, moves, proofs T1 T2 T4 T5 (warm)"; echo
    echo "| headers | what | s | peak MiB |"; echo "|---|---|---|---|"
    for preset in deepseek-v3 k3-like; do
        d=$dir/headers-$preset
        [ -f "$d/config.json" ] || "$python" "$here/peers/make_big.py" "$d" \
            --preset $preset --headers-only >&2
        echo "| $preset | plan --ep 8 |" \
            "$(least 10 "$tool" plan "$d" --ep 8 --json) |"
        "$python" "$here/peers/plan_peers.py" "$d" 2>/dev/null |
            "$python" -c '
import json, sys
for line in sys.stdin:
    r = json.loads(line)
    s = r.get("seconds", r.get("seconds_min"))
    print(f"| '$preset' | {r.get('"'peer'"')} | {s} | {r.get('"'peak_rss_mib', ''"')} |")
' || echo "| $preset | python peers | not run | |"
    done
}

bench_convert() {
    echo; echo "## Convert, cold"; echo
    PYTHON=$python sh "$here/convert.sh" "$tool" "$dir" "$gib" "$reps"
    has_peers || return 0
    echo; echo "The torch script that users write (min of 2):"; echo
    for _ in 1 2; do
        rm -rf "$dir/out.tmp"
        "$PEERS_PYTHON" "$here/peers/convert_script.py" "$dir/source" \
            "$dir/out.tmp" --ep 8 --style per-rank
    done
    rm -rf "$dir/out.tmp"
}

bench_verify() {
    echo; echo "## Verify without source, cold"; echo
    out=$dir/verify.tmp
    [ -d "$out" ] || "$tool" convert "$dir/source" "$out" --ep 8 \
        --progress none >/dev/null
    ${CC:-cc} -O2 -o "$dir/limits" "$here/peers/limits.c" -lcrypto -lpthread
    "$python" - "$tool" "$out" "$dir/limits" <<'PY'
import glob, os, subprocess, sys, time
tool, out, limits = sys.argv[1:4]
files = glob.glob(out + "/*.safetensors")
size = sum(os.path.getsize(f) for f in files)
ranges = out + "/../verify.ranges"
with open(ranges, "w") as g:
    for f in files:
        print(0, os.path.getsize(f), f, file=g)
def evict():
    os.sync()
    for f in files:
        d = os.open(f, os.O_RDONLY); os.posix_fadvise(d, 0, 0, os.POSIX_FADV_DONTNEED); os.close(d)
best = {}
for _ in range(3):
    for name, cmd in (("verify", [tool, "verify", out, "--progress", "none"]),
                      ("disk", [limits, "ranges", ranges, "uring", "1", "4096", "16"])):
        evict(); t = time.monotonic()
        rc = subprocess.call(cmd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        t = time.monotonic() - t
        if rc == 0:
            best[name] = min(best.get(name, 1e9), t)
print("| what | s | GB/s |"); print("|---|---|---|")
for n, t in best.items():
    print(f"| {n} | {t:.2f} | {size / 1e9 / t:.2f} |")
PY
    sh "$here/peers/limits.sh" "$(ls "$dir"/source/*.safetensors | head -1)" \
        2>/dev/null | grep -i 'sha256' || :
    rm -rf "$out"
}

bench_kernels() {
    echo; echo "## Kernels"
    for b in topk expert_choice dispatch ffn; do
        [ -x "$build/tests/bench_$b" ] || { echo; echo "bench_$b: not built"; continue; }
        echo; echo "### $b"; echo; echo '```'
        "$build/tests/bench_$b"
        echo '```'
    done
    has_peers || return 0
    for b in topk ec ffn; do
        echo; echo "### peers: $b"; echo; echo '```'
        "$PEERS_PYTHON" "$here/peers/topk_peers.py" $b || echo "not run"
        echo '```'
    done
}

bench_load() {
    [ -f "$here/load.sh" ] || { echo; echo "## Load: no benchmark yet"; return 0; }
    echo; echo "## Load one rank"; echo
    PYTHON=$python sh "$here/load.sh" "$build" "$dir"
}

for s in $sections; do
    case $s in
    plan | convert | verify | kernels | load) "bench_$s" ;;
    *) echo "no section '$s'" >&2; exit 2 ;;
    esac
done
