#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write a fixture again with every hidden and intermediate size FACTOR times as large.

usage: make_wide_tree.py FIXTURE OUT FACTOR

The fixtures' slots are smaller than one digest leaf (1 MiB): what goes wrong at the borders of leaves and of pieces of
work shows in wider ones only. One file, seeded random payload, nothing that depends on the values. Standard library
only.
"""
import json
import os
import random
import struct
import sys

KEYS = ["hidden_size", "intermediate_size", "moe_intermediate_size",
        "shared_expert_intermediate_size"]


def main():
    src, out, factor = sys.argv[1], sys.argv[2], int(sys.argv[3])
    config = json.load(open(os.path.join(src, "config.json")))
    dims = set()
    for key in KEYS:
        if config.get(key):
            dims |= {config[key], 2 * config[key]}
            config[key] *= factor
    table = {}
    for name in sorted(os.listdir(src)):
        if name.startswith("model") and name.endswith(".safetensors"):
            with open(os.path.join(src, name), "rb") as f:
                table.update(json.loads(f.read(struct.unpack("<Q", f.read(8))[0])))
    table.pop("__metadata__", None)
    at, header, rng = 0, {}, random.Random(1)
    for name, t in sorted(table.items()):
        shape = [d * factor if d in dims else d for d in t["shape"]]
        n = t["data_offsets"][1] - t["data_offsets"][0]
        for old, new in zip(t["shape"], shape):
            n = n // old * new
        header[name] = {"dtype": t["dtype"], "shape": shape, "data_offsets": [at, at + n]}
        at += n
    os.makedirs(out)
    json.dump(config, open(os.path.join(out, "config.json"), "w"), indent=1)
    json.dump({}, open(os.path.join(out, "experts.json"), "w"))
    text = json.dumps(header).encode()
    with open(os.path.join(out, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        while at > 0:
            f.write(rng.getrandbits(8 * min(at, 1 << 20)).to_bytes(min(at, 1 << 20), "little"))
            at -= 1 << 20


main()
