#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Check a converted checkpoint with nothing but stock safetensors and the fixture's own digests.

usage: check_layout.py OUT FIXTURE_DIR --ep W [--redundant R] [--placement P2L.json]
                       [--shared-slots per-rank|global|none|auto] [--w13-order gate-up|up-gate] [--no-mtp]

Independent of the project's code: the placement formulas are those of spec/placement.md written out again,
the truth about every expert's bytes is the fixture's experts.json (digests of gate [I,H], up [I,H],
down [H,I] and their scales and biases, row major). Checks, for every MoE layer and every rank:
  - w13_* and w2_* tensors have L+S rows (slots), in files that stock safetensors opens;
  - row j < L holds the logical expert that physical slot r*L+j holds; rows L.. hold the shared expert's parts;
  - every tensor starts at a multiple of 4096, a layer is one contiguous extent of one file, pads are zeros;
  - dtypes are the source's, unquantised shapes are [L+S, 2I, H] (ungated [L+S, I, H]) and [L+S, H, I];
  - every tensor in a common file is a source tensor, unchanged, once, and listed in the index;
  - conservation: the bytes of the source that are not common are exactly those of E routed experts and, where
    slots are shared, of one copy of the shared experts, per layer: nothing lost, nothing kept twice;
  - manifest.json exists; no rank file is missing or one too many.
Prints one line of figures and exits 0, or prints what is wrong and exits 1.
"""
import argparse
import glob
import hashlib
import json
import os
import re
import struct
import sys

SLOTS = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.(\d+)\.(?:.*\.)?(w13|w2)_(\w+)$")
MTP = re.compile(r"(?:^|\.)mtp\.")  # layers of another space than the main ones
findings = []


def finding(text):
    findings.append(text)


def read_header(path):
    with open(path, "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        header = json.loads(f.read(n))
    header.pop("__metadata__", None)
    return 8 + n, header


def read_span(path, start, entry):
    a, b = entry["data_offsets"]
    with open(path, "rb") as f:
        f.seek(start + a)
        return f.read(b - a)


def sha(b):
    return hashlib.sha256(b).hexdigest()


def component(suffix):
    """Digest key suffix for a tensor suffix: weight -> '', ...scale... -> '_scale', bias -> '_bias'."""
    if "scale" in suffix:
        return None if "input" in suffix or "global" in suffix or suffix.endswith("_2") or "act" in suffix else "_scale"
    if "bias" in suffix:
        return "_bias"
    if "shape" in suffix or "zero" in suffix or "g_idx" in suffix or "qscale" in suffix:
        return None
    return ""


def open_with_stock_reader(path):
    try:
        from safetensors import safe_open
    except ImportError:
        return
    try:
        with safe_open(path, framework="np") as f:
            list(f.keys())
    except Exception as e:  # stock reader refuses: a finding, not a crash
        finding(f"{os.path.basename(path)}: stock safetensors refuses it: {e}")


def check_rank(a, r, L, p2l, truth, want_shared, counts, source_dtypes):
    facts = truth["facts"]
    parts = sorted(glob.glob(os.path.join(a.out, f"experts-rank-{r:05d}-of-{a.ep:05d}-part-*.safetensors")))
    if not parts:
        finding(f"rank {r}: no files")
        return
    layers = {}
    for path in parts:
        open_with_stock_reader(path)
        start, header = read_header(path)
        base = os.path.basename(path)
        if os.path.getsize(path) % 4096:
            finding(f"{base}: {os.path.getsize(path)} bytes, not a multiple of 4096")
        for name, entry in header.items():
            if name.startswith("__pad."):
                pad = read_span(path, start, entry)
                if any(pad) or not 0 < len(pad) < 4096:
                    finding(f"{base}: {name} is {len(pad)} bytes, or not zeros")
                continue
            m = SLOTS.search(name)
            if not m:
                finding(f"{base}: {name} is no slot tensor and no pad")
                continue
            if entry["dtype"] not in source_dtypes:
                finding(f"{base}: {name} is {entry['dtype']}, which the source's expert tensors never are")
            (start0, end0), rows0 = entry["data_offsets"], entry["shape"][0]
            if r == 0:
                counts["per_expert"] += (end0 - start0) // rows0 * facts["E"]
                counts["per_shared"] += (end0 - start0) // rows0 * (rows0 - L)
            if (start + entry["data_offsets"][0]) % 4096:
                finding(f"{base}: {name} starts at {start + entry['data_offsets'][0]}, not a multiple of 4096")
            if not MTP.search(name):
                layers.setdefault(int(m[1]), []).append((m[2], m[3], path, start, entry, name))
    for i, want in truth["layers"].items():
        i = int(i)
        got = layers.get(i, [])
        keys = {(w, s) for w, s, *_ in got}
        if not any(w == "w13" for w, _ in keys) or not any(w == "w2" for w, _ in keys):
            finding(f"rank {r} layer {i}: w13 or w2 missing (has {sorted(keys)})")
            continue
        if len({g[2] for g in got}) != 1:
            finding(f"rank {r} layer {i}: spread over several files")
        spans = sorted((g[3] + g[4]["data_offsets"][0], g[3] + g[4]["data_offsets"][1]) for g in got)
        for (_, e0), (b1, _) in zip(spans, spans[1:]):
            if b1 - e0 >= 4096:
                finding(f"rank {r} layer {i}: a hole of {b1 - e0} bytes inside the layer's extent")
        if len({g[4]["shape"][0] for g in got}) != 1:
            finding(f"rank {r} layer {i}: tensors disagree on the number of slots")
        at = {(w, s): st + e["data_offsets"][0] for w, s, _, st, e, _ in got}
        if ("w13", "weight") in at and ("w2", "weight") in at and sorted(at, key=at.get)[:2] != [("w13", "weight"), ("w2", "weight")]:
            finding(f"rank {r} layer {i}: the extent does not begin with w13_weight, w2_weight")
        checked = set()
        for which, suffix, path, start, entry, name in got:
            comp = component(suffix)
            rows = entry["shape"][0]
            S = rows - L
            allowed = {0, want_shared} if a.shared_slots == "auto" else {0 if a.shared_slots == "none" else want_shared}
            if comp is None:
                continue
            if S not in allowed:
                finding(f"rank {r} layer {i}: {name} has {rows} slots, expected {L} + {sorted(allowed)}")
                continue
            if suffix == "weight" and not facts.get("quant") or entry["dtype"] in ("BF16", "F8_E4M3") and suffix == "weight":
                wide = facts["I"] * (2 if "gate" in want["experts"][0] else 1)
                h_in = facts.get("latent") or facts["H"]
                shape = [rows, wide, h_in] if which == "w13" else [rows, h_in, facts["I"]]
                if entry["shape"] != shape:
                    finding(f"rank {r} layer {i}: {name} is {entry['shape']}, expected {shape}")
                    continue
            blob = read_span(path, start, entry)
            size = len(blob) // rows
            gated = which == "w13" and "gate" in want["experts"][0]

            def split(x):
                if which == "w2":
                    return {"down" + comp: x}
                if not gated:
                    return {"up" + comp: x}
                g, u = x[:size // 2], x[size // 2:]
                if a.w13_order == "up-gate":
                    g, u = u, g
                return {"gate" + comp: g, "up" + comp: u}

            for j in range(L):
                e = p2l[i][r * L + j]
                for key, b in split(blob[j * size:(j + 1) * size]).items():
                    if key in want["experts"][e]:
                        checked.add(key)
                        if sha(b) != want["experts"][e][key]:
                            finding(f"rank {r} layer {i} slot {j}: {key} is not that of logical expert {e}")
                counts["seen"].add((i, e))
            if which == "w2" and comp == "":
                counts["slots"] += rows
            counts["bytes"] += len(blob)
            if S:
                shared = [split(blob[(L + s) * size:(L + s + 1) * size]) for s in range(S)]
                for key in shared[0]:
                    if key not in want["shared"]:
                        continue
                    if which == "w2" and comp == "_scale" and (len(entry["shape"]) == 1 or entry["shape"][2:] == [1]):
                        whole = shared[0][key]  # per tensor or per row: repeated in each part
                        if any(part[key] != whole for part in shared):
                            finding(f"rank {r} layer {i}: {key} differs between the parts of the shared expert")
                    elif which == "w2" and comp != "_bias":
                        h = entry["shape"][1]
                        w = size // h
                        whole = b"".join(shared[s][key][k * w:(k + 1) * w] for k in range(h) for s in range(S))
                    else:
                        whole = b"".join(shared[s][key] for s in range(S))
                    if sha(whole) != want["shared"][key]:
                        finding(f"rank {r} layer {i}: shared slots: {key} differs from the source's shared expert")
        need = {k for k in want["experts"][0] if not k.endswith("_f32")}
        if need - checked:
            finding(f"rank {r} layer {i}: no tensor carries {sorted(need - checked)}")


def read_source(a):
    """name -> (path, start, entry) of the fixture's own shards."""
    with open(os.path.join(a.fixture, "model.safetensors.index.json")) as f:
        shards = sorted(set(json.load(f)["weight_map"].values()))
    src = {}
    for shard in shards:
        path = os.path.join(a.fixture, shard)
        start, header = read_header(path)
        for name, entry in header.items():
            src[name] = (path, start, entry)
    return src


def check_common(a, src, names_skipped):
    """Common tensors are source tensors, unchanged, once. Returns (how many, dtypes and bytes of the rest)."""
    out = {}
    for path in glob.glob(os.path.join(a.out, "common-*.safetensors")) + glob.glob(os.path.join(a.out, "shared-*.safetensors")):
        open_with_stock_reader(path)
        start, header = read_header(path)
        for name, entry in header.items():
            if name.startswith("__pad."):
                continue
            if name in out:
                finding(f"common tensor {name} is there twice")
            out[name] = (path, start, entry)
    for name, o in out.items():
        if name not in src:
            finding(f"common tensor {name} is not in the source")
        elif src[name][2]["dtype"] != o[2]["dtype"] or src[name][2]["shape"] != o[2]["shape"]:
            finding(f"common tensor {name}: dtype or shape changed")
        elif read_span(*src[name]) != read_span(*o):
            finding(f"common tensor {name}: bytes differ from the source")
    index = os.path.join(a.out, "model.safetensors.index.json")
    listed = json.load(open(index))["weight_map"] if os.path.exists(index) else {}
    if sorted(listed) != sorted(out):
        finding(f"model.safetensors.index.json lists {len(listed)} tensors, the common files hold {len(out)}")
    rest = {n: s for n, s in src.items() if n not in out and n not in names_skipped}
    return len(out), {s[2]["dtype"] for s in rest.values()}, \
        sum(s[2]["data_offsets"][1] - s[2]["data_offsets"][0] for s in rest.values()), rest


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("out")
    ap.add_argument("fixture")
    ap.add_argument("--ep", type=int, required=True)
    ap.add_argument("--redundant", type=int, default=0)
    ap.add_argument("--placement")
    ap.add_argument("--shared-slots", default="auto", choices=["per-rank", "global", "none", "auto"])
    ap.add_argument("--w13-order", default="gate-up", choices=["gate-up", "up-gate"])
    ap.add_argument("--no-mtp", action="store_true")
    a = ap.parse_args()

    truth = json.load(open(os.path.join(a.fixture, "experts.json")))
    facts = truth["facts"]
    E, W, R = facts["E"], a.ep, a.redundant
    if a.no_mtp:
        for i in facts.get("mtp_layers", []):
            truth["layers"].pop(str(i), None)
    P = E + R
    if P % W:
        sys.exit(f"cannot check: {P} slots over {W} ranks")
    L = P // W
    p2l = {int(i): [p % E for p in range(P)] for i in truth["layers"]}
    if a.placement:
        maps = json.load(open(a.placement))["physical_to_logical_map"]
        for i in p2l:
            if i < len(maps):
                p2l[i] = maps[i]
    one = next(iter(truth["layers"].values()))
    same_parts = set(one.get("shared") or {}) == {k for k in one["experts"][0] if "bias" not in k}
    fits = facts["shared_width"] and facts["shared_width"] % facts["I"] == 0 and not facts.get("latent")
    want_shared = facts["shared_width"] // facts["I"] if fits and same_parts else 0

    if not os.path.exists(os.path.join(a.out, "manifest.json")):
        finding("no manifest.json")
    src = read_source(a)
    skipped = [n for n in src if a.no_mtp and (MTP.search(n) or any(f"layers.{i}." in n for i in facts.get("mtp_layers", [])))]
    n_common, dtypes, rest_bytes, rest = check_common(a, src, skipped)
    counts = {"slots": 0, "bytes": 0, "seen": set(), "per_expert": 0, "per_shared": 0}
    files = glob.glob(os.path.join(a.out, "experts-rank-*.safetensors"))
    for path in files:
        m = re.search(r"experts-rank-(\d{5})-of-(\d{5})-part-\d{5}\.safetensors$", path)
        if not m or int(m[2]) != W or int(m[1]) >= W:
            finding(f"{os.path.basename(path)}: not a file of {W} ranks")
    for r in range(W):
        check_rank(a, r, L, p2l, truth, want_shared, counts, dtypes)
    for i in p2l:
        for e in range(E):
            if (i, e) not in counts["seen"]:
                finding(f"layer {i}: logical expert {e} is in no slot")
    used = counts["per_expert"] + counts["per_shared"]
    if used != rest_bytes:
        finding(f"{rest_bytes} bytes of the source are in no common file, but the slots hold {used} of them once each "
                f"(of {len(rest)} tensors, such as {sorted(rest)[:2]})")
    if findings:
        print("\n".join(findings[:40]))
        print(f"{len(findings)} findings")
        return 1
    print(f"{counts['slots']} slots, {counts['bytes']} bytes, {len(p2l)} layers x {W} ranks, "
          f"{n_common} common tensors: all as they should be")
    return 0


if __name__ == "__main__":
    sys.exit(main())
