#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Give generated trees weights that can be computed with.

  settle_trees.py DIR...

make_family_trees.py fills tensors with arbitrary bytes, which is all that a
copier needs; as numbers they are mostly huge, infinite or none. Here every
tensor is filled anew, in place, by dtype and name: real numbers near those of
a trained model, FP8 without NaN, block scales near one, packed integers as they
come, group indices in order. Needs numpy; deterministic.
"""
import glob
import json
import struct
import sys
import zlib

import numpy as np


def bf16(x):
    return (np.asarray(x, "<f4").view("<u4") >> 16).astype("<u2")


def group_index(shape, scales):
    """Group of each input, in order, from the number of groups."""
    return np.arange(shape[0], dtype="<i4") * scales // shape[0]


def fill(name, dtype, shape, rng, header):
    n = int(np.prod(shape)) if shape else 1
    scale = "scale" in name and "global" not in name
    real = np.abs(rng.normal(0, 0.02, n)) + 0.01 if scale else None
    if dtype in ("F32", "BF16", "F16", "F64"):
        x = real if scale else rng.normal(0, 0.2, n)
        if name.endswith(("norm.weight", "weight_global_scale")):
            x = np.abs(x) + 0.5
        if dtype == "BF16":
            return bf16(x).tobytes()
        return x.astype({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype]).tobytes()
    if dtype == "F8_E4M3":
        b = rng.integers(0, 256, n, dtype=np.uint8)
        if scale:  # NVFP4's: positive, near one
            return (rng.integers(0x30, 0x40, n, dtype=np.uint8)).tobytes()
        return np.where(b & 0x7F == 0x7F, 0x30, b).astype(np.uint8).tobytes()
    if dtype == "F8_E8M0" or (dtype == "U8" and scale):
        return rng.integers(120, 126, n, dtype=np.uint8).tobytes()
    if name.endswith("g_idx"):
        sibling = name[: -len("g_idx")]
        for other in ("scales", "weight_scale"):
            for key in (sibling + other, sibling.replace("weight_", "") + other):
                if key in header:
                    shape_of = header[key]["shape"]
                    groups = shape_of[0] if other == "scales" else shape_of[-1]
                    return group_index(shape, groups).tobytes()
        return np.zeros(n, "<i4").tobytes()
    if "tid2eid" in name:
        k = shape[-1]  # any experts, each once a token
        ids = (rng.integers(0, k, (n // k, 1)) + np.arange(k)) % k
        return ids.astype({"I64": "<i8", "I32": "<i4"}[dtype]).tobytes()
    if name.endswith("weight_shape"):
        return None
    size = {"BOOL": 1, "I8": 1, "U8": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4,
            "I64": 8, "U64": 8}.get(dtype)
    return None if size is None else rng.bytes(n * size)


def settle(path):
    with open(path, "r+b") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        header = json.loads(f.read(size))
        for name, t in sorted(header.items()):
            if name == "__metadata__":
                continue
            begin, end = t["data_offsets"]
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            data = fill(name, t["dtype"], t["shape"], rng, header)
            if data is None:
                continue
            assert len(data) == end - begin, (name, len(data), end - begin)
            f.seek(8 + size + begin)
            f.write(data)


for tree in sys.argv[1:]:
    for path in sorted(glob.glob(tree + "/*.safetensors")):
        settle(path)
