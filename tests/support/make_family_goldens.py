#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reference answers of routers that no fixture has, for generated trees.

  make_family_goldens.py --list | TREE...

Reads the tensors of a tree that make_family_trees.py made and settle_trees.py
filled, computes its MoE layers in float64 from the formulas of the families,
and writes golden.safetensors and fixture.json beside them, as
fixtures/README.md describes them. Knows nothing of our code. Needs numpy.

Beside golden.safetensors golden-block.safetensors, the same as another
reference would have it: no token ids of hash layers and their columns ranked by
score, weights as a block has them that scales the sum, without the scale, and
those of the joint family for all columns, the shared ones too. And for each of
BENT golden-ANSWER.safetensors, in which one number of that answer is wrong.
"""
import glob
import json
import os
import struct
import sys
import zlib

import numpy as np

GAP = 1e-3


def read(tree):
    out = {}
    for path in sorted(glob.glob(tree + "/model*.safetensors")):
        with open(path, "rb") as f:
            n = struct.unpack("<Q", f.read(8))[0]
            head = json.loads(f.read(n))
            for name, t in head.items():
                if name == "__metadata__":
                    continue
                begin, end = t["data_offsets"]
                f.seek(8 + n + begin)
                raw = f.read(end - begin)
                if t["dtype"] == "BF16":
                    x = (np.frombuffer(raw, "<u2").astype("<u4") << 16)
                    x = x.view("<f4")
                else:
                    x = np.frombuffer(raw, {"F32": "<f4", "I64": "<i8"}
                                      .get(t["dtype"], "u1"))
                if t["dtype"] in ("BF16", "F32"):
                    x = x.astype(np.float64)
                if x.dtype != np.uint8:
                    x = x.reshape(t["shape"])
                out[name] = x
    return out


# ------------------------------------------------------------- activations

def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(g, u):
    return g * sigmoid(g) * u


def gelu_tanh(g, u):
    t = np.sqrt(2 / np.pi) * (g + 0.044715 * g ** 3)
    return 0.5 * g * (1 + np.tanh(t)) * u


def oai(g, u):
    g, u = np.minimum(g, 7.0), np.clip(u, -7.0, 7.0)
    return g * sigmoid(1.702 * g) * (u + 1)


def clamped(g, u):
    return silu(np.minimum(g, 10.0), np.clip(u, -10.0, 10.0))


def relu2(_, u):
    return np.maximum(u, 0) ** 2


def mlp(act, gate, up, down, x):
    u = x @ up.T
    return act(x @ gate.T if gate is not None else None, u) @ down.T


# ------------------------------------------------------------------ routers

def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def mixer(x, k, eps):
    taken, ids, w, gap = set(), [], [], np.inf
    for _ in range(k):
        left = [i for i in range(len(x)) if i not in taken]
        best = max(left, key=lambda i: (x[i], -i))
        m = x[best]
        far = {i: (m - x[i]) / max(abs(x[i]), m) for i in left}
        kept = [x[i] for i in left if not far[i] > 2 * eps]
        w.append(1 / sum(np.exp(v - m) for v in kept))
        gap = min([gap] + [abs(d - 2 * eps) for d in far.values()] +
                  [m - x[i] for i in left if i != best])
        ids.append(best)
        taken.add(best)
    return ids, w, gap


class Family:
    """What is common to the families; a spec replaces some of it."""
    K = 2
    score = "softmax"
    norm = None  # "sum", ("floor", least), "joint", "p"
    rsf = 1.0
    rsf_on_sum = False
    softcap = 0.0
    zero = 0
    act = staticmethod(silu)
    gate = "mlp.gate.weight"
    bias = scale = latent = table = mixer_eps = None
    shared = None
    rms_input = False

    def __init__(self, t, at, of_block):
        self.t, self.at, self.of_block = t, at, of_block

    def get(self, name, *more):
        return self.t[self.at + name % more]

    def has(self, name):
        return name is not None and self.at + name in self.t

    def expert(self, e):
        return [self.get(n, e) for n in
                ("mlp.experts.%d.gate_proj.weight",
                 "mlp.experts.%d.up_proj.weight",
                 "mlp.experts.%d.down_proj.weight")]

    def shared_parts(self):
        if self.shared is None:
            return []
        return [[self.get(n) for n in self.shared]]

    def logits(self, x):
        if self.rms_input:
            x = x / np.sqrt((x ** 2).mean(-1, keepdims=True) + 1e-6)
            x = x * self.get(self.rms_input) / np.sqrt(x.shape[1])
        return x @ self.get(self.gate).T

    def scores(self, y):
        return {"softmax": softmax, "sigmoid": sigmoid,
                "sqrtsoftplus": lambda v: np.sqrt(np.log1p(np.exp(v)))
                }[self.score](y)

    def choose(self, x, token):
        """ids, weights, weights of shared experts, gap of one row."""
        n_shared = len(self.shared_parts()) if self.norm == "joint" else 0
        n = len(x) - n_shared
        if self.mixer_eps is not None:
            ids, w, gap = mixer(x, self.K, self.mixer_eps)
            return ids, np.array(w), [], gap
        y = self.softcap * np.tanh(x / self.softcap) if self.softcap else x
        s = self.scores(y[:n])
        pick = s + self.get(self.bias).reshape(-1) if self.has(self.bias) \
            else y[:n]
        if self.has(self.table):
            ids, gap = [int(i) for i in self.get(self.table)[token]], np.inf
            if self.of_block:
                ids.sort(key=lambda i: (-s[i], i))
        else:
            order = sorted(range(n), key=lambda i: (-pick[i], i))
            ids = order[:self.K]
            gap = min(pick[a] - pick[b] for a, b in
                      zip(order[:self.K], order[1:self.K + 1]))
        w, extra = s[ids], sigmoid(x[n:])
        if self.norm == "sum":
            w = w / (w.sum() + 1e-20)
        elif self.norm == "joint":
            total = w.sum() + extra.sum()
            w, extra = w / total, extra / total
        elif self.norm:
            w = w / max(w.sum(), self.norm[1])
        if self.has(self.scale):
            w = w * self.get(self.scale)[ids]
        by = self.rsf if not self.rsf_on_sum else 1.0
        if self.norm == "joint":
            by = by * float(self.get("mlp.gate.global_scale")[0])
        return ids, w * by, extra * by, gap

    def run(self, rng, rows, tag, out, at):
        h = self.get(self.gate).shape[1]
        x, logits, ids, weights, extra, tokens = [], [], [], [], [], []
        while len(x) < rows:
            row = rng.normal(0, 1, h).astype("<f4").view("<u4") & 0xFFFF0000
            row = row.view("<f4").astype(np.float64)
            token = int(rng.integers(0, 48))
            one = self.logits(row[None])[0]
            chosen = self.choose(one, token)
            if chosen[3] < GAP:
                continue
            x.append(row)
            logits.append(one)
            ids.append(chosen[0])
            weights.append(chosen[1])
            extra.append(chosen[2])
            tokens.append(token)
        x = np.array(x)
        routed = np.zeros_like(x)
        n = len(self.get(self.gate)) - self.zero
        inside = x @ self.get(self.latent[0]).T if self.latent else x
        total = np.zeros_like(inside)
        for t in range(rows):
            for e, w in zip(ids[t], weights[t]):
                if e >= n:
                    routed[t] += w * x[t]
                else:
                    total[t] += w * mlp(self.act, *self.expert(e), inside[t])
        if self.latent:
            total = total @ self.get(self.latent[1]).T
        routed = (routed + total) * (self.rsf if self.rsf_on_sum else 1.0)
        shared = np.zeros_like(x)
        for i, part in enumerate(self.shared_parts()):
            w = np.array([e[i] if len(e) else 1.0 for e in extra])
            shared += w[:, None] * mlp(self.act, *part, x)
        by = self.rsf if self.rsf_on_sum and not self.of_block else 1.0
        w = np.array(weights) * by
        ids = np.array(ids)
        if self.norm == "joint" and self.of_block:
            w = np.concatenate([w, np.array(extra)], 1)
            n_all = len(self.get(self.gate))
            k = len(self.shared_parts())
            ids = np.concatenate([ids, np.tile(np.arange(n_all - k, n_all),
                                               (rows, 1))], 1)
        answers = {"input": x, "router_logits": np.array(logits),
                   "topk_ids": ids, "topk_weights": w,
                   "routed_output": routed, "output": routed + shared}
        if self.shared is not None:
            answers["shared_output"] = shared
        if self.has(self.table) and not self.of_block:
            answers["tokens"] = np.array(tokens)[:, None]
        for what, v in answers.items():
            out["layers.%d.%s.%s" % (at, tag, what)] = v


class LongCat(Family):
    zero, rsf = 4, 6.0
    gate, bias = ("mlp.router.classifier.weight",
                  "mlp.router.e_score_correction_bias")


class Inkling(Family):
    score, norm, rsf = "sigmoid", "joint", 8.0
    bias = "mlp.gate.bias"
    shared = "mlp.shared_experts.shared_"

    def split(self, w13, w2):
        return [w13[0::2], w13[1::2], w2]

    def expert(self, e):
        return self.split(self.get("mlp.experts.w13_weight")[e],
                          self.get("mlp.experts.w2_weight")[e])

    def shared_parts(self):
        return [self.split(a, b) for a, b in
                zip(self.get(self.shared + "w13_weight"),
                    self.get(self.shared + "w2_weight"))]


class Sparse(Family):
    """w1 gate, w3 up, w2 down."""
    block = "block_sparse_moe."
    gate = "block_sparse_moe.gate.weight"

    def expert(self, e):
        return [self.get(self.block + "experts.%d.%s.weight" % (e, n))
                for n in ("w1", "w3", "w2")]


class Phi(Sparse):
    mixer_eps = 0.01


class Grok(Sparse):
    softcap, act = 30.0, staticmethod(gelu_tanh)


class MiniMaxM3(Sparse):
    score, norm, rsf, rsf_on_sum = "sigmoid", "sum", 2.0, True
    act = staticmethod(oai)
    bias = "block_sparse_moe.e_score_correction_bias"
    shared = ["block_sparse_moe.shared_experts.%s_proj.weight" % n
              for n in ("gate", "up", "down")]


class DeepSeekV4(Sparse):
    score, norm, rsf = "sqrtsoftplus", "sum", 1.5
    block, gate, bias = "ffn.", "ffn.gate.weight", "ffn.gate.bias"
    table = "ffn.gate.tid2eid"
    act = staticmethod(clamped)
    shared = ["ffn.shared_experts.%s.weight" % n for n in ("w1", "w3", "w2")]


class Ernie(Family):
    norm = ("floor", 1e-12)
    bias = "mlp.moe_statics.e_score_correction_bias"
    shared = ["mlp.shared_experts.%s_proj.weight" % n
              for n in ("gate", "up", "down")]


class Step(Family):
    score, norm, rsf, rsf_on_sum = "sigmoid", "sum", 3.0, True
    gate, bias = "moe.gate.weight", "moe.router_bias"
    shared = ["moe.share_expert.%s_proj.weight" % n
              for n in ("gate", "up", "down")]

    def expert(self, e):
        return [self.get("moe.%s_proj.weight" % n)[e]
                for n in ("gate", "up", "down")]


class Gemma4(Family):
    norm, act = "sum", staticmethod(gelu_tanh)
    gate, rms_input = "router.proj.weight", "router.scale"
    scale = "router.per_expert_scale"

    def expert(self, e):
        w13 = self.get("experts.gate_up_proj")[e]
        half = len(w13) // 2
        return [w13[:half], w13[half:], self.get("experts.down_proj")[e]]


class Nemotron(Family):
    score, norm, rsf = "sigmoid", "sum", 2.5
    act = staticmethod(relu2)
    gate, bias = "mixer.gate.weight", "mixer.gate.e_score_correction_bias"

    def expert(self, e):
        return [None] + [self.get("mixer.experts.%d.%s_proj.weight" % (e, n))
                         for n in ("up", "down")]

    def shared_parts(self):
        return [[None] + [self.get("mixer.shared_experts.%s_proj.weight" % n)
                          for n in ("up", "down")]]
    shared = True


class NemotronSuper(Nemotron):
    latent = ("mixer.fc1_latent_proj.weight", "mixer.fc2_latent_proj.weight")


class Dbrx(Family):
    """Weights over their p-norm with p = 1."""
    norm, gate = "sum", "ffn.router.layer.weight"

    def expert(self, e):
        w1, v1, w2 = [self.get("ffn.experts.mlp." + n)
                      for n in ("w1", "v1", "w2")]
        n = len(w1) // 8
        cut = slice(e * n, (e + 1) * n)
        return [w1[cut], v1[cut], w2[cut].T]


M = "model.layers.%d."
FAMILIES = {
    "longcat_flash": (LongCat, M), "inkling": (Inkling, "model.llm.layers.%d."),
    "phimoe": (Phi, M), "grok": (Grok, M), "ernie4_5_moe": (Ernie, M),
    "minimax_m3": (MiniMaxM3, "language_model.model.layers.%d."),
    "deepseek_v4-bf16": (DeepSeekV4, "layers.%d."), "step3-flash": (Step, M),
    "gemma4_moe": (Gemma4, "model.language_model.layers.%d."),
    "nemotron_h": (Nemotron, "backbone.layers.%d."),
    "nemotron_h-super": (NemotronSuper, "backbone.layers.%d."),
    "dbrx": (Dbrx, "transformer.blocks.%d."),
}
BENT = ("topk_weights", "output")


# -------------------------------------------------------------------- files

def write(path, tensors):
    head, body = {}, b""
    for name, v in sorted(tensors.items()):
        ids = name.endswith(("topk_ids", "tokens"))
        data = v.astype("<i4" if ids else "<f4").tobytes()
        head[name] = {"dtype": "I32" if ids else "F32", "shape": list(v.shape),
                      "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + body)


def compute(name, t, of_block):
    family, prefix = FAMILIES[name]
    rng, out = np.random.default_rng(zlib.crc32(name.encode())), {}
    for layer in range(8):
        f = family(t, prefix % layer, of_block)
        if f.has(f.gate):
            f.run(rng, 64, "t64", out, layer)
            f.run(rng, 1, "t1", out, layer)
    return out


def answer(tree):
    name, t = os.path.basename(tree.rstrip("/")), read(tree)
    write(tree + "/golden-block.safetensors", compute(name, t, True))
    out = compute(name, t, False)
    write(tree + "/golden.safetensors", out)
    for what in BENT:
        at = min(k for k in out if k.endswith(".t64." + what))
        wrong = out[at].copy()
        wrong[-1, -1] += 0.01 + abs(wrong[-1, -1]) / 8
        write(tree + "/golden-%s.safetensors" % what, {**out, at: wrong})
    most = max(float(np.abs(v).max()) for k, v in out.items()
               if k.endswith("output"))
    with open(tree + "/fixture.json", "w") as f:
        json.dump({"imitates": name, "class": "make_family_goldens.py",
                   "least_selection_gap": GAP, "output_max_abs": most,
                   "tolerance_abs": max(2e-6 * most, 1e-5)}, f, indent=1)


if sys.argv[1:] == ["--list"]:
    print("\n".join(FAMILIES))
else:
    for path in sys.argv[1:]:
        answer(path)
