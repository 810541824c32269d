#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Requantised shared experts against the rules of the formats, written out again in numpy.

usage: check_requantised.py finite SRC          give shared experts in SRC finite values (trees are random bytes)
       check_requantised.py check SRC OUT W13   W13: gate-up or up-gate; compare the shared rows of every rank's files
"""
import glob
import json
import os
import re
import sys

import numpy as np

E2M1 = np.array([0, .5, 1, 1.5, 2, 3, 4, 6], np.float32)
SIZES = {"BF16": 2, "F8_E4M3": 1, "F8_E8M0": 1, "F32": 4, "U8": 1, "I8": 1, "I32": 4, "I64": 8}


def e4m3_table():
    codes = np.arange(127)
    e, m = codes >> 3, codes & 7
    return np.where(e == 0, m / 8 * 2.0 ** -6, (1 + m / 8) * 2.0 ** (e - 7.0)).astype(np.float32)


E4M3 = e4m3_table()


def header(path):
    with open(path, "rb") as f:
        n = int.from_bytes(f.read(8), "little")
        h = json.loads(f.read(n))
    h.pop("__metadata__", None)
    return 8 + n, h


def tensors(folder, pattern):
    out = {}
    for path in sorted(glob.glob(os.path.join(folder, pattern))):
        base, h = header(path)
        for name, t in h.items():
            a, b = t["data_offsets"]
            out[name] = (path, base + a, b - a, t["dtype"], t["shape"])
    return out


def load(t):
    path, off, n, _, _ = t
    with open(path, "rb") as f:
        f.seek(off)
        return np.frombuffer(f.read(n), np.uint8)


def finite(src):
    rng = np.random.default_rng(5)
    for name, (path, off, n, dtype, _) in tensors(src, "*.safetensors").items():
        if "shared_expert" not in name or "gate.weight" in name:
            continue
        if dtype == "BF16":
            values = rng.normal(0, 0.3, n // 2).astype(np.float32)
            values[::97] *= 20  # outliers
            data = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        elif dtype == "F8_E4M3":
            data = (rng.integers(0, 126, n, np.uint8) | rng.integers(0, 2, n, np.uint8) << 7).astype(np.uint8).tobytes()
        elif dtype == "F8_E8M0":
            data = rng.integers(118, 126, n, np.uint8).tobytes()
        else:
            continue
        with open(path, "r+b") as f:
            f.seek(off)
            f.write(data)


def bf16(x):
    u = x.astype(np.float32).view(np.uint32)
    return ((u + 0x7fff + (u >> 16 & 1)) >> 16).astype(np.uint16)


def wide(src, name):
    """float32 [out][in] of a shared projection."""
    t = src[name + ".weight"]
    out, inn = t[4]
    raw = load(t)
    if t[3] == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(out, inn)
    value = E4M3[raw & 127] * np.where(raw & 128, -1, 1).astype(np.float32)
    scale = load(src[name + ".scale"]).reshape(-(-out // 128), -(-inn // 128))
    scale = np.exp2(scale.astype(np.float32) - 127).astype(np.float32)
    return value.reshape(out, inn) * scale.repeat(128, 0)[:out].repeat(128, 1)[:, :inn]


def nearest(x, table):
    """Index into a sorted table of magnitudes, ties to the even index."""
    x = np.minimum(x, table[-1])
    hi = np.clip(np.searchsorted(table, x), 1, len(table) - 1)
    lo = hi - 1
    mid = (table[lo].astype(np.float64) + table[hi]) / 2
    return np.where((x > mid) | ((x == mid) & (hi % 2 == 0)), hi, lo).astype(np.uint8)


def groups(w, n):
    return w.reshape(w.shape[0], -1, n)


def mxfp4(w):
    g = groups(w, 32)
    amax = np.abs(g).max(-1)
    e = np.where(amax > 0, np.floor(np.log2(np.where(amax > 0, amax, 1))) - 2, 0)
    v = g / np.exp2(e).astype(np.float32)[..., None]
    code = (nearest(np.abs(v), E2M1) | (np.signbit(v) * 8).astype(np.uint8)).reshape(w.shape)
    return code[:, 0::2] | code[:, 1::2] << 4, (e + 127).astype(np.uint8)


def int4(w):
    g = groups(w, 32)
    amax = np.abs(g).max(-1)
    scale = bf16(np.where(amax > 0, amax / np.float32(7.5), 1))
    s = (scale.astype(np.uint32) << 16).view(np.float32)
    code = (np.clip(np.rint(g / s[..., None]), -8, 7) + 8).astype(np.uint8).reshape(w.shape)
    return code[:, 0::2] | code[:, 1::2] << 4, scale


def fp8(w, rows, cols):
    out, inn = w.shape
    data, scale = np.empty(w.shape, np.uint8), np.empty((-(-out // rows), -(-inn // cols)), np.float32)
    for r in range(scale.shape[0]):
        for c in range(scale.shape[1]):
            at = np.s_[r * rows:(r + 1) * rows, c * cols:(c + 1) * cols]
            amax = np.abs(w[at]).max()
            scale[r, c] = amax / np.float32(448) if amax > 0 else 1
            v = w[at] / scale[r, c]
            data[at] = nearest(np.abs(v), E4M3) | (np.signbit(v) * 128).astype(np.uint8)
    return data, scale


def check(folder, out, order):
    src = tensors(folder, "*.safetensors")
    with open(os.path.join(out, "manifest.json")) as f:
        m = json.load(f)
    local, shared, inter = (m["topology"]["local_slots"], m["topology"]["shared_slots"],
                            m["model"]["moe_intermediate_size"])
    assert shared > 0 and m["options"]["requantize"] == "shared"
    n, lost = 0, {}
    for path in sorted(glob.glob(os.path.join(out, "experts-rank-*.safetensors"))):
        base, h = header(path)
        for name, t in h.items():
            found = re.match(r"(.*)\.experts\.(w13|w2)_(.*)$", name)
            if not found or found[3] == "weight_shape":
                continue
            prefix = found[1] + (".shared_experts." if found[1] + ".shared_expert.gate_proj.weight" not in src
                                 else ".shared_expert.")
            names = ("w1", "w3", "w2") if prefix + "w1.weight" in src else ("gate_proj", "up_proj", "down_proj")
            gate, up, down = (wide(src, prefix + k) for k in names)
            for s in range(shared):
                rows, a = np.s_[s * inter:(s + 1) * inter], t["data_offsets"][0]
                halves = [down[:, rows]] if found[2] == "w2" else [gate[rows], up[rows]]
                halves = halves if order == "gate-up" else halves[::-1]
                weights = h[f"{found[1]}.experts.{found[2]}_" + ("weight_packed" if found[3].startswith("weight_p")
                                                                 else "weight")]["dtype"] if "scale" not in found[3] else ""
                made = []
                for w in halves:
                    if t["dtype"] == "I32" or t["dtype"] == "BF16":
                        data, scale = int4(w)
                    elif t["dtype"] in ("I8", "U8", "F8_E8M0"):
                        data, scale = mxfp4(w)
                    elif found[3] == "weight_scale" or (found[3] == "weight" and m["model"]["family"] == "llama4"):
                        data, scale = fp8(w, 1, w.shape[1])
                    else:
                        data, scale = fp8(w, 128, 128)
                    made.append(scale if "scale" in found[3] else data)
                want = b"".join(np.ascontiguousarray(x).tobytes() for x in made)
                each = (t["data_offsets"][1] - a) // t["shape"][0]
                with open(path, "rb") as f:
                    f.seek(base + a + (local + s) * each)
                    got = f.read(each)
                if got != want:
                    bad = [i for i in range(min(len(got), len(want))) if got[i] != want[i]]
                    sys.exit(f"{os.path.basename(path)}: {name}, shared part {s}: {len(bad)} of {len(want)} bytes "
                             f"differ ({len(got)}), first {bad[:3]}, dtype {weights}")
                n += 1
    for line in m["requantised"]:
        assert 0 < line["relative_rms"] < 0.2 and line["max_abs"] > 0, line
        lost.setdefault(line["projection"], line["relative_rms"])
    assert len(m["requantised"]) == 3 * len(m["model"]["layers"])
    print(f"{n} requantised slots, relative rms {lost}")


if sys.argv[1] == "finite":
    finite(sys.argv[2])
else:
    check(*sys.argv[2:5])
