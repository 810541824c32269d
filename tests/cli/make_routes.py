#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What engines would have returned for a fixture: make_routes.py FIXTURE OUT

Writes OUT.json (SGLang's response) and OUT.npy (vLLM's array) from the ids of
the fixture's golden.safetensors, which the model's own library gave, with the
standard library alone. --rotate N adds N to every id: another model's routes.
"""
import argparse
import base64
import json
import struct


def read(path):
    with open(path, "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        header = json.loads(f.read(n))
        data = f.read()
    return header, data


def main():
    p = argparse.ArgumentParser()
    p.add_argument("fixture")
    p.add_argument("out")
    p.add_argument("--rotate", type=int, default=0)
    p.add_argument("--id", default="golden")
    a = p.parse_args()
    config = json.load(open(a.fixture + "/config.json"))
    config = config.get("text_config", config)
    n_layers = config["num_hidden_layers"]
    n_experts = next(config[k] for k in ("n_routed_experts", "num_experts",
                                         "num_local_experts") if k in config)
    header, data = read(a.fixture + "/golden.safetensors")
    layers = {}
    for name, t in header.items():
        part = name.split(".")
        if len(part) == 4 and part[2:] == ["t64", "topk_ids"]:
            begin, end = t["data_offsets"]
            k = t["shape"][1]
            ids = struct.unpack("<%di" % (64 * k), data[begin:end])
            layers[int(part[1])] = [(i + a.rotate) % n_experts for i in ids]
    flat = []
    for token in range(64):
        for layer in range(n_layers):
            row = layers.get(layer)
            flat += row[token * k:token * k + k] if row else [0] * k
    text = base64.b64encode(struct.pack("<%di" % len(flat), *flat)).decode()
    with open(a.out + ".json", "w") as f:
        json.dump({"text": "...", "meta_info": {
            "id": a.id, "prompt_tokens": 60, "completion_tokens": 5,
            "routed_experts": text}}, f)
    head = "{'descr': '|u1', 'fortran_order': False, 'shape': (64, %d, %d), }" \
        % (n_layers, k)
    head += " " * (127 - 10 - len(head)) + "\n"
    with open(a.out + ".npy", "wb") as f:
        f.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)))
        f.write(head.encode() + bytes(flat))


main()
