#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write a qwen3_moe checkpoint of about MIB MiB into DIR: two layers, 32
experts, two shards, an index. Plain python3, no modules to install. Contents
are a function of SEED and the tensor's name.

  make_slice.py DIR MIB [SEED]
"""
import json
import os
import random
import struct
import sys

H, E, LAYERS, VOCAB, HEADS, HEAD = 1024, 32, 2, 4096, 8, 64


def tensors(inter):
    yield "model.embed_tokens.weight", (VOCAB, H)
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", (H,)
        yield p + "post_attention_layernorm.weight", (H,)
        a = p + "self_attn."
        yield a + "q_proj.weight", (HEADS * HEAD, H)
        yield a + "k_proj.weight", (HEADS * HEAD, H)
        yield a + "v_proj.weight", (HEADS * HEAD, H)
        yield a + "o_proj.weight", (H, HEADS * HEAD)
        yield a + "q_norm.weight", (HEAD,)
        yield a + "k_norm.weight", (HEAD,)
        yield p + "mlp.gate.weight", (E, H)
        for e in range(E):
            x = f"{p}mlp.experts.{e}."
            yield x + "gate_proj.weight", (inter, H)
            yield x + "up_proj.weight", (inter, H)
            yield x + "down_proj.weight", (H, inter)
    yield "model.norm.weight", (H,)
    yield "lm_head.weight", (VOCAB, H)


def size(shape):
    n = 2
    for d in shape:
        n *= d
    return n


def write(path, part, seed):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in part:
        header[name] = {"dtype": "BF16", "shape": list(shape),
                        "data_offsets": [at, at + size(shape)]}
        at += size(shape)
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, shape in part:
            f.write(random.Random(f"{seed} {name}").randbytes(size(shape)))


def main():
    out, mib = sys.argv[1], int(sys.argv[2])
    seed = sys.argv[3] if len(sys.argv) > 3 else "0"
    fixed = sum(size(s) for n, s in tensors(0))
    inter = max(1, round(((mib << 20) - fixed) / (LAYERS * E * 3 * H * 2)))
    every = sorted(tensors(inter))
    os.makedirs(out)
    weight_map, half = {}, len(every) // 2
    for i, part in enumerate((every[:half], every[half:])):
        name = f"model-{i + 1:05}-of-00002.safetensors"
        write(os.path.join(out, name), part, seed)
        weight_map.update((n, name) for n, _ in part)
    total = sum(size(s) for _, s in every)
    with open(os.path.join(out, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {"total_size": total},
                   "weight_map": weight_map}, f)
    with open(os.path.join(out, "config.json"), "w") as f:
        json.dump({"architectures": ["Qwen3MoeForCausalLM"],
                   "model_type": "qwen3_moe", "hidden_act": "silu",
                   "decoder_sparse_step": 1, "mlp_only_layers": [],
                   "head_dim": HEAD, "hidden_size": H,
                   "intermediate_size": inter,
                   "moe_intermediate_size": inter, "norm_topk_prob": True,
                   "num_attention_heads": HEADS, "num_experts": E,
                   "num_experts_per_tok": 4, "num_hidden_layers": LAYERS,
                   "num_key_value_heads": HEADS, "vocab_size": VOCAB,
                   "tie_word_embeddings": False}, f, indent=1)


main()
