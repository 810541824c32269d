#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Mixtrals in GPTQ and AWQ, and what they compute: make_packed_goldens.py DIR

Integers of 4 bits in an I32, along the inputs (GPTQ, zero points less one,
g_idx) or along the outputs in AWQ's order; groups of 32 inputs. Weights are
quantised here and the answers come from the dequantised ones in float64.
Knows nothing of our code. Needs numpy.
"""
import json
import os
import struct
import sys

import numpy as np

E, K, H, INTER, GROUP, GAP = 8, 2, 64, 96, 32, 1e-3
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
rng = np.random.default_rng(11)


def bf16(x):
    return (np.asarray(x, "<f4").view("<u4") & 0xFFFF0000).view("<f4")


def lanes(x):
    """The last axis, eight numbers of 4 bits each, as one I32."""
    return (x.astype("<u4") << np.arange(0, 32, 4, dtype="<u4")).sum(
        -1, dtype="<u4")


def along_out(x, order):
    return lanes(x.reshape(x.shape[0], -1, 8)[:, :, order])


def along_in(x):
    return lanes(x.reshape(-1, 8, x.shape[1]).transpose(0, 2, 1))


def quantise(tensors, name, n_out, n_in, awq):
    """Store a matrix; returns it as [out][in]."""
    q = rng.integers(0, 16, (n_in, n_out))
    zero = rng.integers(1, 16, (n_in // GROUP, n_out))
    scale = rng.uniform(0.01, 0.04, zero.shape).astype("<f2")
    group = np.arange(n_in) // GROUP
    plain = list(range(8))
    if awq:
        tensors[name + "qweight"] = along_out(q, AWQ_ORDER)
        tensors[name + "qzeros"] = along_out(zero, AWQ_ORDER)
    else:
        tensors[name + "qweight"] = along_in(q)
        tensors[name + "qzeros"] = along_out(zero - 1, plain)
        tensors[name + "g_idx"] = group.astype("<u4")
    tensors[name + "scales"] = scale
    return ((q - zero[group]) * scale[group].astype(np.float64)).T


def run(x, router, experts):
    """ids, weights and output of one row, None where the choice is close."""
    logits = router @ x
    order = np.argsort(-logits, kind="stable")
    if np.diff(-logits[order[:K + 1]]).min() < GAP:
        return None
    ids = order[:K]
    w = np.exp(logits[ids] - logits[ids[0]])
    w /= w.sum()
    out = np.zeros(H)
    for e, weight in zip(ids, w):
        gate, up, down = experts[e]
        g = gate @ x
        out += weight * (down @ (g / (1 + np.exp(-g)) * (up @ x)))
    return logits, ids, w, out


def answers(router, experts, layer, tag, rows, golden):
    x, found = [], []
    while len(x) < rows:
        row = bf16(rng.normal(0, 1, H)).astype(np.float64)
        one = run(row, router, experts)
        if one is not None:
            x.append(row)
            found.append(one)
    at = "layers.%d.%s." % (layer, tag)
    golden[at + "input"] = np.array(x)
    for i, what in enumerate(("router_logits", "topk_ids", "topk_weights",
                              "output")):
        golden[at + what] = np.array([f[i] for f in found])


def write(path, tensors):
    head, body = {}, b""
    for name, v in sorted(tensors.items()):
        data = np.ascontiguousarray(v).tobytes()
        dtype = {"<u4": "I32", "<f2": "F16", "<f4": "F32"}[v.dtype.str]
        head[name] = {"dtype": dtype, "shape": list(v.shape),
                      "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(head).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + body)


def make(where, method):
    tensors, golden = {}, {}
    for layer in range(2):
        at = "model.layers.%d.block_sparse_moe." % layer
        router = rng.normal(0, 0.2, (E, H)).astype("<f4")
        tensors[at + "gate.weight"] = router
        experts = [[quantise(tensors, at + "experts.%d.%s." % (e, part),
                             n_out, n_in, method == "awq")
                    for part, n_out, n_in in (("w1", INTER, H), ("w3", INTER, H),
                                              ("w2", H, INTER))]
                   for e in range(E)]
        answers(router.astype(np.float64), experts, layer, "t64", 64, golden)
    os.makedirs(where)
    write(where + "/model.safetensors", tensors)
    write(where + "/golden.safetensors",
          {k: v.astype("<u4" if k.endswith("ids") else "<f4")
           for k, v in golden.items()})
    most = max(np.abs(v).max() for k, v in golden.items() if "output" in k)
    with open(where + "/fixture.json", "w") as f:
        json.dump({"tolerance_abs": float(4e-6 * most)}, f)
    with open(where + "/config.json", "w") as f:
        json.dump({"model_type": "mixtral", "num_local_experts": E,
                   "num_experts_per_tok": K, "hidden_size": H,
                   "intermediate_size": INTER, "num_hidden_layers": 2,
                   "quantization_config": {"quant_method": method, "bits": 4,
                                           "group_size": GROUP}}, f)


for one in ("gptq", "awq"):
    make(sys.argv[1] + "/mixtral-" + one, one)
