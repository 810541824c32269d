#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Vectors of the routing variants that no fixture has: routing.json and
routing.safetensors in DIR, expected values in float64 straight from the
formulas of the variants. Written without our own code and for nothing but the
test that runs it: python3 make_vectors.py DIR"""
import json
import math
import random
import struct
import sys

NAN, INF = math.nan, math.inf
rnd = random.Random(7)


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def rank(pairs, k):
    """Ids of the k best (score, id): score descending, id ascending."""
    return [i for _, i in sorted(pairs, key=lambda p: (-p[0], p[1]))[:k]]


def softmax(x, over=None):
    over = x if over is None else over
    m = max(over)
    total = sum(math.exp(v - m) for v in over)
    return [math.exp(v - m) / total for v in x]


def plain(c, x, bias):
    cap = c.get("softcap", 0)
    y = [cap * math.tanh(v / cap) for v in x] if cap else x
    score = {"softmax": lambda: softmax(y),
             "sigmoid": lambda: [sigmoid(v) for v in y],
             "sqrtsoftplus": lambda: [math.sqrt(math.log1p(math.exp(v)))
                                      for v in y],
             "logit": lambda: y}[c["scoring"]]()
    choice = [s + b for s, b in zip(score, bias)] if bias else x
    ids = rank(list(zip(choice, range(len(x)))), c["K"])
    return ids, [score[i] for i in ids], y


def mixer(c, x):
    eps, taken, ids, w = c["jitter_eps"], set(), [], []
    for _ in range(c["K"]):
        left = [i for i in range(len(x)) if i not in taken]
        m = max(x[i] for i in left)
        best = min(i for i in left if x[i] == m)
        near = [x[i] for i in left
                if not (m - x[i]) / max(abs(x[i]), m) > 2 * eps]
        w.append(softmax([m], near)[0])
        ids.append(best)
        taken.add(best)
    return ids, w


def route(c, x, bias, scale):
    n_all = c["E"]
    joint, x = x[n_all:], x[:n_all]
    if c["variant"] == "sparse_mixer":
        ids, w = mixer(c, x)
        y = x
    else:
        ids, w, y = plain(c, x, bias)
    extra = []
    if c["variant"] == "topk_softmax":
        w = softmax([y[i] for i in ids])
    elif c["variant"] == "joint":
        extra = [sigmoid(v) for v in joint]
        total = sum(w) + sum(extra) + 1e-20
        w = [v / total for v in w]
        extra = [v / total for v in extra]
    elif "norm_min" in c:
        w = [v / max(sum(w), c["norm_min"]) for v in w]
    elif "p" in c:
        w = [v / sum(abs(u) ** c["p"] for u in w) ** (1 / c["p"]) for v in w]
    elif c["renormalize"]:
        w = [v / (sum(w) + 1e-20) for v in w]
    if c["rsf_on_weights"]:
        w = [v * c["rsf"] for v in w]
    if scale:
        w = [v * scale[i] if i < len(scale) else v for v, i in zip(w, ids)]
    for s in range(c["S"]):
        ids.append(n_all + s)
        if c["variant"] == "joint":
            w.append(extra[s] * (c["rsf"] if c["rsf_on_weights"] else 1))
        else:
            w.append(1 if c["rsf_on_weights"] else 1 / c["rsf"])
    return ids, w


def near_tie(c, x, bias):
    """True where a choice hangs on the last bits of a float32."""
    n_all, k = c["E"], c["K"]
    v = sorted(x[:n_all], reverse=True)[:k + 1]
    if bias:
        one = dict(c, K=min(k + 1, n_all))
        ids, s, _ = plain(one, x[:n_all], bias)
        v = [a + bias[i] for a, i in zip(s, ids)]
    close = any(a - b < 1e-4 for a, b in zip(v, v[1:]))
    if c["variant"] == "sparse_mixer":
        taken = set()
        for _ in range(k):
            left = [u for i, u in enumerate(x[:n_all]) if i not in taken]
            m = max(left)
            close |= any(abs((m - u) / max(abs(u), m) - 2 * c["jitter_eps"])
                         < 1e-4 for u in left)
            taken.add(x.index(m))
    return close


def make(cases, tensors, **c):
    base = dict(variant="plain", scoring="softmax", bias=False, groups=1,
                topk_group=1, renormalize=False, rsf=1.0, rsf_on_weights=False,
                S=0, T=5, dtype="F32")
    scale_on, spread = c.pop("expert_scale", False), c.pop("spread", 2)
    called = c.pop("called", None)
    c = {**base, **c}
    c["id"] = "var-%02d" % (len(cases) + 1)
    c["non_padded"] = c["T"]
    n_all, n_joint = c["E"], c["S"] if c["variant"] == "joint" else 0
    bias = [f32(rnd.gauss(0, 0.1)) for _ in range(n_all)] if c["bias"] else None
    scale = ([f32(rnd.uniform(0.5, 2)) for _ in
              range(n_all - c.get("zero_experts", 0))] if scale_on else None)
    rows, ids, exact = [], [], []
    while len(rows) < c["T"]:
        x = [f32(rnd.gauss(0, spread)) for _ in range(n_all + n_joint)]
        if near_tie(c, x, bias):
            continue
        i, w = route(c, x, bias, scale)
        rows += [x]
        ids += [i]
        exact += [w]
    cols = c["K"] + c["S"]
    cases.append({**c, "variant": called or c["variant"]})
    tensors[c["id"] + ".logits"] = ("F32", [c["T"], n_all + n_joint], rows)
    tensors[c["id"] + ".ids"] = ("I32", [c["T"], cols], ids)
    tensors[c["id"] + ".exact"] = ("F64", [c["T"], cols], exact)
    if bias:
        tensors[c["id"] + ".bias"] = ("F32", [n_all], [bias])
    if scale:
        tensors[c["id"] + ".per_expert_scale"] = ("F32", [len(scale)], [scale])


def write(path, tensors):
    head, body = {}, b""
    for name, (dtype, shape, rows) in tensors.items():
        letter = {"F32": "f", "I32": "i", "F64": "d"}[dtype]
        flat = [v for row in rows for v in row]
        data = struct.pack("<%d%s" % (len(flat), letter), *flat)
        head[name] = {"dtype": dtype, "shape": shape,
                      "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + body)


def main(where):
    cases, tensors = [], {}
    for n_all, k in ((8, 2), (72, 6), (96, 4), (160, 6), (288, 8), (320, 22),
                     (384, 8), (512, 22)):
        for variant in ("plain", "biased"):
            make(cases, tensors, E=n_all, K=k, variant=variant,
                 bias=variant == "biased", renormalize=True,
                 scoring="sigmoid")
        make(cases, tensors, E=n_all, K=k, variant="sparse_mixer",
             jitter_eps=0.01)
        make(cases, tensors, E=n_all, K=k, variant="sparse_mixer",
             jitter_eps=0.1)
        make(cases, tensors, E=n_all, K=k, variant="topk_softmax",
             scoring="logit")
        make(cases, tensors, E=n_all, K=k, variant="softcap", softcap=30.0)
        make(cases, tensors, E=n_all, K=k, variant="softcap", softcap=2.0,
             renormalize=True)
        make(cases, tensors, E=n_all, K=k, variant="softcap", softcap=30.0,
             spread=80)
        for p in (1, 2):
            make(cases, tensors, E=n_all, K=k, variant="p_norm", p=p)
        make(cases, tensors, E=n_all, K=k, variant="biased", bias=True,
             renormalize=True, norm_min=0.125)
        make(cases, tensors, E=n_all, K=k, variant="biased", bias=True,
             zero_experts=n_all // 4, rsf=6.0, rsf_on_weights=True)
        make(cases, tensors, E=n_all, K=k, variant="joint", bias=True,
             scoring="sigmoid", S=2, rsf=2.5, rsf_on_weights=True)
        make(cases, tensors, E=n_all, K=k, variant="plain", renormalize=True,
             expert_scale=True)
        make(cases, tensors, E=n_all, K=k, scoring="sqrtsoftplus",
             variant="biased", bias=True, renormalize=True, S=2, rsf=1.5)
    for k in (40, 64):
        make(cases, tensors, E=200, K=k, variant="topk_softmax",
             scoring="logit")
    for called, c in (
            ("joint_normalisation", dict(variant="joint", scoring="sigmoid",
                                         S=1)),
            ("sparse_mixer_top2", dict(variant="sparse_mixer",
                                       jitter_eps=0.01)),
            ("top_k_then_softmax", dict(variant="topk_softmax",
                                        scoring="logit")),
            ("scale_on_the_routed_sum", dict(scoring="sigmoid", rsf=2.0, S=1,
                                             renormalize=True)),
            ("soft-capped", dict(variant="softcap", softcap=30.0))):
        make(cases, tensors, E=40, K=3, called=called, **c)
    with open(where + "/routing.json", "w") as f:
        json.dump({"format": "routing/1", "cases": cases}, f)
    write(where + "/routing.safetensors", tensors)


main(sys.argv[1])
