# SPDX-License-Identifier: Apache-2.0
"""Which bytes of a Hugging Face MoE checkpoint one expert-parallel rank needs, and where they go.

Shared by the loaders and the converter script of this folder, so that every peer does the same work.
Placement is the trivial one: rank r of W owns routed experts [r*E/W, (r+1)*E/W); shared experts of the
routed width sit in the last rows. Per MoE layer the result is
  w13 [L+S, 2I, H] (gate rows, then up rows), w2 [L+S, H, I], and their block scales where there are any.
"""
import glob
import json
import os
import re
import struct
from math import prod

ITEM = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "U8": 1}
EXPERT = re.compile(r"^(.*\.layers\.(\d+)\.)mlp\.(?:experts\.(\d+)|shared_experts)\.(gate|up|down)_proj\.(weight|weight_scale_inv)$")
KINDS = ("w13_weight", "w2_weight", "w13_weight_scale_inv", "w2_weight_scale_inv")


def read_header(path):
    with open(path, "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        h = json.loads(f.read(n))
    h.pop("__metadata__", None)
    return 8 + n, h


class Piece:
    """One source tensor that the rank needs: where it lies, and the byte range it fills."""
    __slots__ = ("name", "file", "offset", "nbytes", "key", "slot", "row", "dst")

    def __init__(self, name, file, offset, nbytes, key, slot, row):
        self.name, self.file, self.offset, self.nbytes = name, file, offset, nbytes
        self.key, self.slot, self.row, self.dst = key, slot, row, None


class Plan:
    """`tensors`: key -> (dtype, shape), in the order they lie in the arena; `pieces`: by file and offset."""

    def __init__(self, directory, rank, ep):
        self.files = sorted(glob.glob(os.path.join(directory, "*.safetensors")))
        self.file_bytes = sum(os.path.getsize(f) for f in self.files)
        with open(os.path.join(directory, "config.json")) as f:
            cfg = json.load(f)
        experts = cfg.get("n_routed_experts") or cfg["num_experts"]
        if experts % ep:
            raise SystemExit(f"{experts} experts do not divide over {ep} ranks")
        self.local = experts // ep
        lo, self.pieces, shapes, self.other = rank * self.local, [], {}, []
        for path in self.files:
            base, header = read_header(path)
            for name, t in header.items():
                m = EXPERT.match(name)
                begin, end = t["data_offsets"]
                if not m:
                    self.other.append((name, path))
                    continue
                if m[3] is not None and not lo <= int(m[3]) < lo + self.local:
                    continue
                slot = self.local if m[3] is None else int(m[3]) - lo
                kind = ("w2_" if m[4] == "down" else "w13_") + m[5]
                key = (int(m[2]), KINDS.index(kind))
                rows, cols = t["shape"]
                shapes[key] = (f"{m[1]}mlp.experts.{kind}", t["dtype"], rows * (1 if m[4] == "down" else 2), cols)
                self.pieces.append(Piece(name, path, base + begin, end - begin, key, slot, rows if m[4] == "up" else 0))
        slots = 1 + max(p.slot for p in self.pieces)
        self.tensors = {k: (shapes[k][0], shapes[k][1], (slots, *shapes[k][2:])) for k in sorted(shapes)}
        self.pieces.sort(key=lambda p: (p.file, p.offset))
        self.needed = sum(p.nbytes for p in self.pieces)
        at, self.at = 0, {}
        for k, (_, dtype, shape) in self.tensors.items():
            self.at[k] = at
            at += -(-ITEM[dtype] * prod(shape) // 4096) * 4096
        self.arena_bytes = at
        for p in self.pieces:
            _, dtype, (_, rows, cols) = self.tensors[p.key]
            p.dst = self.at[p.key] + ITEM[dtype] * cols * (p.slot * rows + p.row)

    def size(self, key):
        _, dtype, shape = self.tensors[key]
        return ITEM[dtype] * prod(shape)
