#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compare the JSON of moe-convert inspect with a fixture's experts.json and shards.

usage: check_inspect.py FIXTURES NAME.json...

experts.json holds the facts of the reference implementation's own model class; the shards are read here
byte by byte. Nothing is taken from the program's output but what is compared.
"""
import json
import os
import re
import struct
import sys

findings = []


def expect(name, key, got, want):
    if got != want or isinstance(got, bool) != isinstance(want, bool):
        findings.append(f"{name}: {key} is {got!r}, expected {want!r}")


def shard_tensors(directory):
    """All tensors of the indexed shards: name -> (dtype, bytes)."""
    with open(os.path.join(directory, "model.safetensors.index.json")) as f:
        shards = sorted(set(json.load(f)["weight_map"].values()))
    tensors = {}
    for shard in shards:
        with open(os.path.join(directory, shard), "rb") as f:
            n = struct.unpack("<Q", f.read(8))[0]
            header = json.loads(f.read(n))
        header.pop("__metadata__", None)
        for key, entry in header.items():
            a, b = entry["data_offsets"]
            tensors[key] = (entry["dtype"], b - a)
    return shards, tensors


def routed_dtype(tensors):
    """dtype of the widest tensors inside an experts name space: the weights, not their scales."""
    inside = [t for n, t in tensors.items() if re.search(r"\.experts\.", n) and not re.search(r"shared|scale|bias", n)]
    dtypes = {d for d, _ in inside}
    assert len(dtypes) == 1, dtypes
    return dtypes.pop()


def check_router(name, got, facts):
    """The words of experts.json: "sigmoid_bias_group_top2" is score, bias, group rule."""
    words = facts["router"].split("_")
    groups = words[words.index("group") + 1] if "group" in words and facts["n_group"] > 1 else None
    expect(name, "router.score", got["score"], words[0])
    expect(name, "router.group_score", got["group_score"], groups)
    expect(name, "router.choice", got["choice"], "topk")
    expect(name, "router.bias", got["bias"],
           "choice" if "bias" in words else "logit" if facts["family"] == "gpt_oss" else None)
    norm = {"gpt_oss": "softmax", "dbrx": "p"}.get(facts["family"], "sum" if facts["norm_topk_prob"] else "none")
    expect(name, "router.norm", got["norm"], norm)
    expect(name, "router.scale_on", got["scale_on"], "weights")
    expect(name, "router.weight_on_input", got["weight_on_input"], facts["family"] == "llama4")
    expect(name, "router.why_not", got["why_not"], None)


def check(name, got, directory):
    with open(os.path.join(directory, "experts.json")) as f:
        facts = json.load(f)["facts"]
    with open(os.path.join(directory, "config.json")) as f:
        config = json.load(f)
    shards, tensors = shard_tensors(directory)
    keys = list(got)
    expect(name, "first keys", keys[:2], ["schema", "ok"])
    expect(name, "schema", got["schema"], "moec.inspect/1")
    expect(name, "ok", got["ok"], True)
    expect(name, "model_type", got["model_type"], config["model_type"])
    expect(name, "n_routed_experts", got["n_routed_experts"], facts["E"])
    expect(name, "top_k", got["top_k"], facts["K"])
    expect(name, "hidden_size", got["hidden_size"], facts["H"])
    expect(name, "moe_intermediate_size", got["moe_intermediate_size"], facts["I"])
    expect(name, "n_layers", got["n_layers"], facts["layers"])
    expect(name, "moe_layers", got["moe_layers"], facts["moe_layers"])
    expect(name, "mtp_layers", got["mtp_layers"], facts.get("mtp_layers") or [])
    # A shared expert fuses where its width is a whole number of routed ones.
    slots, rest = divmod(facts["shared_width"], facts["I"])
    expect(name, "n_shared_experts", got["n_shared_experts"], slots if rest == 0 else 0)
    expect(name, "shared.width", got["shared"]["width"], facts["shared_width"])
    expect(name, "router.routed_scaling_factor", got["router"]["routed_scaling_factor"],
           facts["routed_scaling_factor"] or 1)
    for key in ("n_group", "topk_group"):
        expect(name, "router." + key, got["router"][key], facts[key] or 0)
    check_router(name, got["router"], facts)
    expect(name, "expert_dtype", got["expert_dtype"], routed_dtype(tensors))
    expect(name, "n_tensors", got["n_tensors"], len(tensors))
    expect(name, "n_files", got["n_files"], len(shards))
    expect(name, "bytes", got["bytes"], sum(b for _, b in tensors.values()))
    expect(name, "sum of dtypes", sum(d["bytes"] for d in got["dtypes"].values()), got["bytes"])
    expect(name, "sum of roles", sum(got["bytes_by_role"].values()), got["bytes"])
    expect(name, "problems is a list", isinstance(got["problems"], list), True)


def main():
    fixtures, documents = sys.argv[1], sys.argv[2:]
    names = [os.path.splitext(os.path.basename(d))[0] for d in documents]
    if sorted(names) != sorted(os.listdir(fixtures)) or not names:
        findings.append(f"inspected {sorted(names)}, the fixtures are {sorted(os.listdir(fixtures))}")
    for name, document in zip(names, documents):
        with open(document) as f:
            check(name, json.load(f), os.path.join(fixtures, name))
    print("\n".join(findings) if findings else f"{len(names)} fixtures agree with their facts")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
