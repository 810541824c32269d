#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# eplb.sh BENCH_EPLB DIR_OF_EPLB
#
# EPLB of 61 layers (256 experts, 32 redundant slots, 32 ranks) beside
# DeepSeek's own code in the same run, and that both give the same slots.
# DIR_OF_EPLB is a checkout of deepseek-ai/EPLB (its eplb.py). PYTHON needs
# torch. Then the planner against EPLB on 500 random skewed layers.
set -eu
[ $# -eq 2 ] || { sed -n '3,11p' "$0"; exit 2; }
bench=$1 theirs=$2
python=${PYTHON:-python3}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"$bench" 61 "$tmp/loads" "$tmp/slots" | sed -n 1p | tee "$tmp/ours"
ms=$(awk '{print $2}' "$tmp/ours")
PYTHONPATH=$theirs "$python" - "$tmp" "$ms" <<'PY'
import sys, time
import numpy as np
import torch
from eplb import rebalance_experts

loads = torch.from_numpy(np.fromfile(sys.argv[1] + "/loads", "<f4").reshape(61, 256))
times = []
for _ in range(3):
    begin = time.perf_counter()
    phy2log, _, _ = rebalance_experts(loads, 288, 1, 1, 32)
    times.append(time.perf_counter() - begin)
ours = np.fromfile(sys.argv[1] + "/slots", "<i4").reshape(61, 288)
best = min(times) * 1e3
print(f"DeepSeek {best:10.3f} ms, best of 3, torch {torch.__version__}")
print(f"ratio    {best / float(sys.argv[2]):10.1f}, same slots: {bool((phy2log.numpy() == ours).all())}")
PY
"$bench" 500
