#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write a synthetic MoE checkpoint in the real Hugging Face format.

Tensor names, dtypes, shapes per expert, shard sizes, file order and index are those of the
published models; only the number of experts or layers is cut to fit the size asked for.
Inside a file the order is the one the stock writer produces (wide dtypes first, then names as
strings), so the experts of a rank are NOT contiguous: experts.1, experts.10, experts.11, ...

Contents are pseudo-random, a function of (seed, tensor name) alone, and never NaN or infinite.

  make_big.py DIR --preset deepseek-v3-slice --gib 8 --dtype fp8
  make_big.py DIR --preset qwen3-30b-slice   --gib 6 --dtype bf16
  make_big.py DIR --preset deepseek-v3 --headers-only     full scale, sparse, no disk used
  make_big.py DIR --preset k3-like     --headers-only     497,220 tensors
"""
import argparse
import json
import os
import struct
import sys
import time
import zlib
from math import ceil, prod

BYTES = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "U8": 1}
ORDER = {"F32": 3, "BF16": 2, "F8_E4M3": 1, "U8": 0}      # how the stock writer sorts: wide first
SHARD = 4_300_000_000
K3_SHARD = 16_350_000_000                                 # the published one has 96 files
CHUNK = 32 << 20


class Model:
    """Collects (name, dtype, shape) in the order a state dict would give them."""

    def __init__(self, fp8):
        self.fp8, self.tensors = fp8, []

    def add(self, name, dtype, *shape):
        self.tensors.append((name, dtype, shape))

    def linear(self, base, out, inp):
        if self.fp8:
            self.add(base + ".weight", "F8_E4M3", out, inp)
            self.add(base + ".weight_scale_inv", "F32", ceil(out / 128), ceil(inp / 128))
        else:
            self.add(base + ".weight", "BF16", out, inp)

    def mlp(self, base, inter, hidden):
        self.linear(base + ".gate_proj", inter, hidden)
        self.linear(base + ".up_proj", inter, hidden)
        self.linear(base + ".down_proj", hidden, inter)

    def nbytes(self):
        return sum(BYTES[d] * prod(s) for _, d, s in self.tensors)


def deepseek(fp8, layers, dense, experts, vocab, mtp, heads, n_group, topk_group, scale, arch):
    H, I, DI = 7168, 2048, 18432
    m = Model(fp8)
    m.add("model.embed_tokens.weight", "BF16", vocab, H)
    for i in range(layers + mtp):
        p = f"model.layers.{i}."
        if i >= layers:
            m.add(p + "embed_tokens.weight", "BF16", vocab, H)
            m.add(p + "enorm.weight", "BF16", H)
            m.add(p + "hnorm.weight", "BF16", H)
            m.add(p + "eh_proj.weight", "BF16", H, 2 * H)
        a = p + "self_attn."
        m.linear(a + "q_a_proj", 1536, H)
        m.add(a + "q_a_layernorm.weight", "BF16", 1536)
        m.linear(a + "q_b_proj", heads * 192, 1536)
        m.linear(a + "kv_a_proj_with_mqa", 576, H)
        m.add(a + "kv_a_layernorm.weight", "BF16", 512)
        m.linear(a + "kv_b_proj", heads * 256, 512)
        m.linear(a + "o_proj", H, heads * 128)
        if i < dense:
            m.mlp(p + "mlp", DI, H)
        else:
            m.add(p + "mlp.gate.weight", "BF16", experts, H)
            m.add(p + "mlp.gate.e_score_correction_bias", "F32", experts)
            for e in range(experts):
                m.mlp(f"{p}mlp.experts.{e}", I, H)
            m.mlp(p + "mlp.shared_experts", I, H)
        m.add(p + "input_layernorm.weight", "BF16", H)
        m.add(p + "post_attention_layernorm.weight", "BF16", H)
        if i >= layers:
            m.add(p + "shared_head.norm.weight", "BF16", H)
            m.add(p + "shared_head.head.weight", "BF16", vocab, H)
    m.add("model.norm.weight", "BF16", H)
    m.add("lm_head.weight", "BF16", vocab, H)
    cfg = {
        "architectures": [arch], "model_type": "kimi_k2" if "Kimi" in arch else "deepseek_v3",
        "hidden_size": H, "intermediate_size": DI, "moe_intermediate_size": I,
        "num_hidden_layers": layers, "num_nextn_predict_layers": mtp, "first_k_dense_replace": dense,
        "moe_layer_freq": 1, "n_routed_experts": experts, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "n_group": n_group, "topk_group": topk_group,
        "norm_topk_prob": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
        "routed_scaling_factor": scale, "num_attention_heads": heads, "num_key_value_heads": heads,
        "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "v_head_dim": 128, "vocab_size": vocab, "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "torch_dtype": "bfloat16",
    }
    if fp8:
        cfg["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                      "weight_block_size": [128, 128]}
    return m, cfg


def qwen3(fp8, layers, experts, vocab):
    H, I, heads, kv, hd = 2048, 768, 32, 4, 128
    m = Model(fp8)
    m.add("model.embed_tokens.weight", "BF16", vocab, H)
    for i in range(layers):
        p = f"model.layers.{i}."
        a = p + "self_attn."
        m.linear(a + "q_proj", heads * hd, H)
        m.linear(a + "k_proj", kv * hd, H)
        m.linear(a + "v_proj", kv * hd, H)
        m.linear(a + "o_proj", H, heads * hd)
        m.add(a + "q_norm.weight", "BF16", hd)
        m.add(a + "k_norm.weight", "BF16", hd)
        m.add(p + "mlp.gate.weight", "BF16", experts, H)
        for e in range(experts):
            m.mlp(f"{p}mlp.experts.{e}", I, H)
        m.add(p + "input_layernorm.weight", "BF16", H)
        m.add(p + "post_attention_layernorm.weight", "BF16", H)
    m.add("model.norm.weight", "BF16", H)
    m.add("lm_head.weight", "BF16", vocab, H)
    cfg = {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": H,
        "intermediate_size": 6144, "moe_intermediate_size": I, "num_hidden_layers": layers,
        "num_experts": experts, "num_experts_per_tok": 8, "norm_topk_prob": True, "mlp_only_layers": [],
        "decoder_sparse_step": 1, "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": hd,
        "vocab_size": vocab, "hidden_act": "silu", "rms_norm_eps": 1e-6, "torch_dtype": "bfloat16",
    }
    if fp8:
        cfg["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                      "weight_block_size": [128, 128]}
    return m, cfg


def k3_like():
    """Kimi-K3's expert geometry and tensor count. Attention and vision names are stand-ins: what a
    planner must survive is the number, the sizes and the mixture, not their exact spelling."""
    H, I, LAT, E, L = 7168, 3072, 3584, 896, 93
    m = Model(False)
    q = "language_model.model."
    m.add(q + "embed_tokens.weight", "BF16", 163840, H)
    for i in range(L):
        p = f"{q}layers.{i}."
        a = p + "self_attn."
        if i % 4 == 3:
            for n, o, k in (("q_proj", 18432, H), ("kv_a_proj_with_mqa", 576, H), ("kv_b_proj", 24576, 512),
                            ("o_proj", H, 12288)):
                m.add(f"{a}{n}.weight", "BF16", o, k)
            m.add(a + "kv_a_layernorm.weight", "BF16", 512)
        else:
            for n, o, k in (("q_proj", 12288, H), ("k_proj", 12288, H), ("v_proj", 12288, H), ("f_a_proj", 128, H),
                            ("f_b_proj", 12288, 128), ("b_proj", 96, H), ("g_a_proj", 128, H),
                            ("g_b_proj", 12288, 128), ("o_proj", H, 12288)):
                m.add(f"{a}{n}.weight", "BF16", o, k)
            for n in ("q_conv1d", "k_conv1d", "v_conv1d"):
                m.add(f"{a}{n}.weight", "BF16", 12288, 1, 4)
            m.add(a + "A_log", "F32", 1, 1, 96, 1)
            m.add(a + "dt_bias", "F32", 12288)
            m.add(a + "o_norm.weight", "BF16", 128)
        m.add(p + "input_layernorm.weight", "BF16", H)
        m.add(p + "post_attention_layernorm.weight", "BF16", H)
        if i == 0:
            for n, o, k in (("gate_proj", 33792, H), ("up_proj", 33792, H), ("down_proj", H, 33792)):
                m.add(f"{p}mlp.{n}.weight", "BF16", o, k)
            continue
        b = p + "block_sparse_moe."
        m.add(b + "gate.weight", "BF16", E, H)
        m.add(b + "gate.e_score_correction_bias", "F32", E)
        m.add(b + "routed_expert_down_proj.weight", "BF16", LAT, H)
        m.add(b + "routed_expert_norm.weight", "BF16", LAT)
        m.add(b + "routed_expert_up_proj.weight", "BF16", H, LAT)
        for e in range(E):
            for w, o, k in (("w1", I, LAT), ("w2", LAT, I), ("w3", I, LAT)):
                m.add(f"{b}experts.{e}.{w}.weight_packed", "U8", o, k // 2)
                m.add(f"{b}experts.{e}.{w}.weight_scale", "U8", o, k // 32)
        for n, o, k in (("gate_proj", 2 * I, H), ("up_proj", 2 * I, H), ("down_proj", H, 2 * I)):
            m.add(f"{b}shared_experts.{n}.weight", "BF16", o, k)
    m.add(q + "norm.weight", "BF16", H)
    m.add("language_model.lm_head.weight", "BF16", 163840, H)
    j = 0
    while len(m.tensors) < 497_220:
        m.add(f"vision_tower.encoder.blocks.{j // 12}.part{j % 12}.weight", "BF16", 1152, 1152)
        j += 1
    cfg = {"architectures": ["KimiK3ForConditionalGeneration"], "model_type": "kimi_k3", "text_config": {
        "model_type": "kimi_linear", "hidden_size": H, "routed_expert_hidden_size": LAT, "moe_intermediate_size": I,
        "num_hidden_layers": L, "first_k_dense_replace": 1, "num_experts": E, "num_shared_experts": 2,
        "num_experts_per_token": 16, "num_expert_group": 1, "topk_group": 1, "moe_renormalize": True,
        "moe_router_activation_func": "sigmoid", "routed_scaling_factor": 1.0, "latent_moe_use_norm": True},
        "quantization_config": {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}}
    return m, cfg


def build(preset, gib, dtype, experts):
    """The largest slice of the preset that fits `gib` GiB: whole layers with every expert where at
    least one fits, else two MoE layers with fewer experts (a multiple of 16)."""
    fp8 = dtype == "fp8"
    if preset == "deepseek-v3":
        return deepseek(fp8, 61, 3, 256, 129280, 1, 128, 8, 4, 2.5, "DeepseekV3ForCausalLM")
    if preset == "kimi-k2":
        return deepseek(fp8, 61, 1, 384, 163840, 0, 64, 1, 1, 2.827, "KimiK2ForCausalLM")
    if preset == "qwen3-30b":
        return qwen3(fp8, 48, 128, 151936)
    if preset == "k3-like":
        return k3_like()
    limit = gib * (1 << 30)
    if preset == "deepseek-v3-slice":
        full, make = 256, lambda n, e: deepseek(fp8, n + 1, 1, e, 4096, 0, 128, 8, 4, 2.5, "DeepseekV3ForCausalLM")
    elif preset == "k2-slice":
        full, make = 384, lambda n, e: deepseek(fp8, n + 1, 1, e, 4096, 0, 64, 1, 1, 2.827, "KimiK2ForCausalLM")
    elif preset == "qwen3-30b-slice":
        full, make = 128, lambda n, e: qwen3(fp8, n, e, 4096)
    else:
        sys.exit(f"unknown preset {preset}")
    fits = lambda n, e: make(n, e)[0].nbytes() <= limit
    if experts is None and fits(1, full):
        experts = full
    if experts is None:
        experts = next((e for e in range(full, 0, -16) if fits(2, e)), 16)
    n = 1
    while fits(n + 1, experts):
        n += 1
    return make(n, experts)


def shards(model, limit):
    """Split in model order at `limit` bytes, then sort inside a shard as the stock writer does."""
    out, cur, size = [], [], 0
    for t in model.tensors:
        b = BYTES[t[1]] * prod(t[2])
        if cur and size + b > limit:
            out.append(cur)
            cur, size = [], 0
        cur.append(t)
        size += b
    out.append(cur)
    return [sorted(s, key=lambda t: (-ORDER[t[1]], t[0])) for s in out]


def header(tensors):
    h, off = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, shape in tensors:
        b = BYTES[dtype] * prod(shape)
        h[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [off, off + b]}
        off += b
    raw = json.dumps(h, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw, off


def chunks(np, seed, name, dtype, nbytes):
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    done = 0
    while done < nbytes:
        n = min(CHUNK, nbytes - done)
        words = -(-n // 8)
        if dtype == "F32":
            v = rng.random(words * 2, dtype=np.float32)
            if name.endswith("bias"):
                v = v - np.float32(0.5)
            else:
                v = v * np.float32(2e-4) + np.float32(1e-4)
            out = v.view(np.uint8)
        else:
            r = rng.integers(0, 1 << 64, size=words, dtype=np.uint64)
            if dtype == "BF16":                       # magnitude 2^-15 .. 2^-7, either sign
                r &= np.uint64(0x83FF83FF83FF83FF)
                r |= np.uint64(0x3800380038003800)
            elif dtype == "F8_E4M3":                  # every value but the two NaN codes
                low = np.uint64(0x7F7F7F7F7F7F7F7F)
                t = r & low
                t += np.uint64(0x0101010101010101)
                t &= np.uint64(0x8080808080808080)
                t >>= np.uint64(7)
                r ^= t
            out = r.view(np.uint8)
        yield memoryview(out[:n])
        done += n


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("dir")
    ap.add_argument("--preset", required=True, choices=["deepseek-v3-slice", "qwen3-30b-slice", "k2-slice", "deepseek-v3",
                                                        "kimi-k2", "qwen3-30b", "k3-like"])
    ap.add_argument("--gib", type=float, default=8)
    ap.add_argument("--dtype", choices=["bf16", "fp8"], default=None)
    ap.add_argument("--experts", type=int, default=None, help="override the number of routed experts")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--headers-only", action="store_true", help="full headers, sparse data: for planning benchmarks")
    a = ap.parse_args()
    dtype = a.dtype or ("bf16" if a.preset.startswith("qwen3") else "fp8")
    if not a.headers_only and not a.preset.endswith("-slice"):
        sys.exit("full-scale presets are written with --headers-only")
    t0 = time.time()
    model, cfg = build(a.preset, a.gib, dtype, a.experts)
    parts = shards(model, K3_SHARD if a.preset == "k3-like" else SHARD)
    os.makedirs(a.dir, exist_ok=True)
    if not a.headers_only:
        import numpy as np
    weight_map, total = {}, 0
    for k, tensors in enumerate(parts):
        fname = f"model-{k + 1:05d}-of-{len(parts):06d}.safetensors"
        head, size = header(tensors)
        with open(os.path.join(a.dir, fname), "wb", buffering=0) as f:
            f.write(head)
            if a.headers_only:
                f.truncate(len(head) + size)
            else:
                for name, dt, shape in tensors:
                    for c in chunks(np, a.seed, name, dt, BYTES[dt] * prod(shape)):
                        f.write(c)
                os.fsync(f.fileno())
        weight_map.update((t[0], fname) for t in tensors)
        total += size
    with open(os.path.join(a.dir, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, f, indent=2)
    with open(os.path.join(a.dir, "config.json"), "w") as f:
        json.dump(cfg, f, indent=2)
    print(json.dumps({"dir": a.dir, "preset": a.preset, "tensors": len(weight_map), "files": len(parts),
                      "bytes": total, "gib": round(total / 2**30, 2), "seconds": round(time.time() - t0, 2),
                      "experts": cfg.get("n_routed_experts") or cfg.get("num_experts"),
                      "layers": cfg.get("num_hidden_layers")}))


if __name__ == "__main__":
    main()
