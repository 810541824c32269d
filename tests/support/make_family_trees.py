#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write a tiny checkpoint of every family of families.json, in each format that its entry names.

usage: make_family_trees.py OUT [NAME ...]      NAME: a tree or a family; all of them without one
       make_family_trees.py --list

Standard library only, and nothing of mapping/families: names come from each entry's `match` block (the regular
expressions are turned round into names), config keys from `config_keys`, and the layout in the files from `names`.
What the table says in prose only (which tensor of a stack is transposed, which list a config holds) stands below,
family by family, in TREES.

A tree is two shards and an index, config.json with the published keys, seeded random payload, some dense and some
MoE layers, an MTP layer where the entry has one, and every role of the match block. Beside it experts.json in the
form of fixtures/README.md: facts, and the SHA-256 of gate [I,H], up [I,H] and down [H,I] of every expert, with
their scales and biases, so that tests/checks/check_layout.py can judge a conversion.
"""
import hashlib
import json
import os
import random
import re
import struct
import sys
import zlib

try:
    from re import _constants as sre, _parser as sre_parse
except ImportError:  # before Python 3.11
    import sre_constants as sre
    import sre_parse

HERE = os.path.dirname(os.path.abspath(__file__))
BITS = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "BF16": 16, "F16": 16, "F8_E4M3": 8, "F8_E8M0": 8, "U8": 8,
        "I8": 8}


# ------------------------------------------------------------------ names

def expand(pattern):
    """Every name that a regular expression of the table stands for; {L}, {E}, {suf} for its groups."""
    def walk(items):
        outs = [""]
        for op, arg in items:
            if op is sre.LITERAL:
                here = [chr(arg)]
            elif op is sre.AT:
                here = [""]
            elif op is sre.SUBPATTERN:
                group, inner = arg[0], arg[-1]
                name = groups.get(group)
                here = ["{" + name + "}"] if name in ("L", "E") else walk(inner)
                if name == "suf":
                    suffixes.extend(here)
                    here = ["{suf}"]
            elif op is sre.BRANCH:
                here = [o for branch in arg[1] for o in walk(branch)]
            elif op is sre.MAX_REPEAT and arg[:2] == (0, 1):
                inner = walk(arg[2])
                here = inner if inner == ["{suf}"] else inner + [""]
            else:
                raise ValueError(f"{pattern}: cannot turn {op} round")
            outs = [o + h for o in outs for h in here]
        return outs
    parsed = sre_parse.parse(pattern)
    groups = {v: k for k, v in parsed.state.groupdict.items()}
    suffixes = []
    return walk(parsed)


# ------------------------------------------------------------- projections
# A projection is its components in the order of the file's suffixes: (suffix, dtype, shape, bytes), digest key.

class Payload:
    """Random bytes that depend on the tree and on nothing else."""

    def __init__(self, seed):
        self.rng = random.Random(seed)

    def __call__(self, dtype, shape):
        n = BITS[dtype] // 8
        for d in shape:
            n *= d
        data = self.rng.randbytes(n)
        if dtype == "F32":  # any bits but no NaN: routers and scales are numbers
            words = struct.unpack(f"<{n // 4}I", data)
            data = struct.pack(f"<{n // 4}f", *(0.5 + w / 2 ** 33 for w in words))
        return data


def ceil_div(a, b):
    return -(-a // b)


def components(fmt, out, inn):
    """(suffix, digest key's ending or None, dtype, shape) of one projection [out, inn]."""
    if fmt in ("BF16", "F16", "F32"):
        return [("weight", "", fmt, [out, inn])]
    scales = {
        "fp8_block": [("weight_scale_inv", "_scale", "F32", [ceil_div(out, 128), ceil_div(inn, 128)])],
        "fp8_block_e8m0": [("scale", "_scale", "F8_E8M0", [ceil_div(out, 128), ceil_div(inn, 128)])],
        "fp8_block_dot": [("scale", "_scale", "F32", [ceil_div(out, 128), ceil_div(inn, 128)])],
        "fp8_row": [("weight_scale", "_scale", "F32", [out, 1])],
        "fp8_tensor": [("weight_scale", "_scale", "F32", []), ("input_scale", None, "F32", [])],
        "fp8_mistral": [("qscale_weight", "_scale", "F32", []), ("qscale_act", None, "F32", [])],
        "fp8_stacked": [("weight_scale_inv", "_scale", "F32", [])],
        "fp8_granite": [("weight_scale", "_scale", "F32", [])],
        "mxfp8": [("weight_scale_inv", "_scale", "U8", [out, inn // 32])],
    }
    if fmt in scales:
        return [("weight", "", "F8_E4M3", [out, inn])] + scales[fmt]
    return {
        "mxfp4_deepseek": [("weight", "", "I8", [out, inn // 2]), ("scale", "_scale", "F8_E8M0", [out, inn // 32])],
        "mxfp4_packed": [("weight_packed", "", "U8", [out, inn // 2]), ("weight_scale", "_scale", "U8", [out, inn // 32])],
        "int4": [("weight_packed", "", "I32", [out, inn // 8]), ("weight_scale", "_scale", "BF16", [out, inn // 32]),
                 ("weight_shape", None, "I32", [2])],
        "nvfp4": [("weight", "", "U8", [out, inn // 2]), ("weight_scale", "_scale", "F8_E4M3", [out, inn // 16]),
                  ("weight_scale_2", None, "F32", []), ("input_scale", None, "F32", [])],
    }[fmt]


def quantization_config(fmt):
    return {
        "fp8_block": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128],
                      "activation_scheme": "dynamic"},
        "fp8_block_e8m0": {"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"},
        "fp8_block_dot": {"quant_method": "fp8", "weight_block_size": [128, 128]},
        "fp8_row": {"quant_method": "compressed-tensors", "format": "float-quantized"},
        "fp8_tensor": {"quant_method": "modelopt", "quant_algo": "FP8"},
        "fp8_mistral": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"},
        "mxfp8": {"quant_method": "mxfp8", "weight_block_size": [1, 32]},
        "mxfp4_deepseek": {"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"},
        "mxfp4_packed": {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"},
        "mxfp4_blocks": {"quant_method": "mxfp4"},
        "int4": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        "nvfp4": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    }.get(fmt)


def transposed(data, rows, cols, size):
    """[rows, cols] of elements of `size` bytes -> [cols, rows]."""
    view = memoryview(data)
    if size == 2:
        view = view.cast("H")
    elif size == 4:
        view = view.cast("I")
    return b"".join(bytes(view[c::cols]) for c in range(cols))


def interleaved(gate, up, rows):
    """Rows gate 0, up 0, gate 1, up 1, ..."""
    n = len(gate) // rows
    return b"".join(gate[r * n:(r + 1) * n] + up[r * n:(r + 1) * n] for r in range(rows))


def sha(data):
    return hashlib.sha256(data).hexdigest()


class Projections:
    """gate, up, down of one expert (or of a shared one), canonical, with digests."""

    def __init__(self, payload, fmt, inter, hidden, gated, with_bias=False):
        self.parts = {}
        for part in ("gate", "up", "down") if gated else ("up", "down"):
            out, inn = (hidden, inter) if part == "down" else (inter, hidden)
            comps = {}
            for suffix, ending, dtype, shape in components(fmt, out, inn):
                data = struct.pack("<2i", out, inn) if suffix == "weight_shape" else payload(dtype, shape)
                comps[suffix] = (ending, dtype, shape, data)
            if with_bias:
                comps["bias"] = ("_bias", "BF16", [out], payload("BF16", [out]))
            self.parts[part] = comps
        # One number for both: NVFP4 as ModelOpt has it, and tensors that hold gate and up.
        one = {"nvfp4": "weight_scale_2", "fp8_stacked": "weight_scale_inv", "fp8_granite": "weight_scale"}.get(fmt)
        if gated and one:
            self.parts["up"][one] = self.parts["gate"][one]

    def digests(self):
        return {part + ending: sha(data) for part, comps in self.parts.items()
                for ending, _, _, data in comps.values() if ending is not None}


# ------------------------------------------------------------------ a tree

class Tree:
    def __init__(self, entry, name, spec):
        self.entry, self.name, self.spec = entry, name, spec
        self.payload = Payload(zlib.crc32(name.encode()))
        self.tensors = []  # (name, dtype, shape, data)
        self.E, self.K = spec.get("E", 8), spec.get("K", 2)
        self.H, self.I = spec.get("H", 64), spec.get("I", 32)
        self.latent = spec.get("latent")
        self.S = spec.get("S", 0)
        self.shared_width = spec.get("shared_width", self.S * self.I)
        self.fmt = spec.get("fmt", "BF16")
        self.shared_fmt = spec.get("shared_fmt", self.fmt)
        self.layers = spec.get("layers", 3)
        self.moe = spec.get("moe", [1, 2])
        self.mtp = spec.get("mtp", [])  # numbers in the names
        self.roles = spec.get("roles") or entry["match"]["roles"]
        self.prefixes = spec.get("prefixes") or expand(entry["match"]["prefix"])
        self.gated = "routed_up" not in self.roles or "routed_gate" in self.roles
        self.shared_names = {}
        self.truth = {}

    def add(self, name, dtype, shape, data=None):
        self.tensors.append((name, dtype, shape, self.payload(dtype, shape) if data is None else data))

    def prefix(self, layer, mtp):
        if mtp and "mtp_prefix" in self.spec:
            return self.spec["mtp_prefix"].replace("{L}", str(layer))
        want = self.spec.get("prefix", self.prefixes[0])
        if want not in self.prefixes:
            raise ValueError(f"{self.name}: '{want}' is none of {self.prefixes}")
        return want.replace("{L}", str(layer))

    def role_name(self, role, **groups):
        """The name of a role: the alternative that the spec asks for, or the first."""
        names = expand(self.roles[role])
        name = next((n for n in names if self.spec.get("pick", "\0") in n), names[0])
        for key, value in groups.items():
            name = name.replace("{" + key + "}", str(value))
        return name

    # ---- routers and everything else that the match block names

    def router_width(self):
        return self.E + self.spec.get("Z", 0) + (self.S if self.spec.get("sink") else 0)

    def add_role(self, at, role, layer, mtp):
        width, f32 = self.router_width(), self.spec.get("router_dtype", "BF16")
        hl = self.latent or self.H
        if role == "router_bias" and (layer < self.spec.get("hash_layers", 0) and not mtp):
            return
        if role == "hash_table" and (mtp or layer >= self.spec.get("hash_layers", 0)):
            return
        if role in ("latent_down", "latent_up", "latent_norm") and not self.latent:
            return
        shapes = {
            "router_weight": (f32, self.spec.get("router_shape", [width, self.H])),
            "router_weight_vision": None,
            "router_bias": ("F32", self.spec.get("bias_shape", [self.E + self.spec.get("Z", 0)])),
            "router_logit_bias": ("BF16", [self.E]),
            "router_scale": ("BF16", [self.H]),
            "router_per_expert_scale": ("BF16", [self.E]),
            "router_global_scale": ("F32", [1]),
            "hash_table": ("I64", [48, self.K]),
            "latent_down": ("BF16", [hl, self.H]),
            "latent_up": ("BF16", [self.H, hl]),
            "latent_norm": ("BF16", [hl]),
            "shared_sigmoid_gate": ("BF16", [1, self.H]),
            "dense_parallel": ("BF16", None),
        }
        if role == "dense_parallel":
            for name in expand(self.roles[role]):
                shape = [self.H, 3 * self.I] if "down" in name else [3 * self.I, self.H]
                self.add(at + name, "BF16", shape)
        elif role not in shapes:
            raise ValueError(f"{self.name}: role {role} is unknown")
        elif shapes[role] is not None:
            self.add(at + self.role_name(role, suf="weight"), *shapes[role])

    # ---- experts

    def put_per_expert(self, at, experts):
        for e, x in enumerate(experts):
            for part, comps in x.parts.items():
                for suffix, (_, dtype, shape, data) in comps.items():
                    name = self.spec.get("routed_names", {}).get(part)
                    name = name.format(E=e, suf=suffix) if name else \
                        self.role_name("routed_" + part, E=e, suf=suffix)
                    self.add(at + name, dtype, shape, data)

    def stack(self, at, name, slices, dtype, shape):
        self.add(at + name, dtype, [len(slices)] + shape, b"".join(slices))

    def joined(self, x, suffix):
        """gate and up of one component in one: shape and bytes."""
        _, dtype, shape, gate = x.parts["gate"][suffix]
        up = x.parts["up"][suffix][3]
        if not shape:
            return dtype, shape, gate
        data = interleaved(gate, up, shape[0]) if self.spec.get("interleaved") else gate + up
        return dtype, [2 * shape[0]] + shape[1:], data

    def put_stacked(self, at, experts):
        both = [r for r in self.roles if r.startswith("routed_gate_up")]
        down = [r for r in self.roles if r.startswith("routed_down") and r != "routed_down"] or ["routed_down"]
        for part, role in (("gate_up", both[0]), ("down", down[0])):
            for suffix in experts[0].parts["down"]:
                slices, shape, dtype = [], None, None
                for x in experts:
                    dtype, shape, data = self.joined(x, suffix) if part == "gate_up" else x.parts["down"][suffix][1:]
                    if self.spec.get("transposed") and len(shape) == 2:
                        data = transposed(data, *shape, BITS[dtype] // 8)
                        shape = shape[::-1]
                    if suffix.endswith("blocks"):
                        shape = shape[:-1] + [shape[-1] // 16, 16]
                    slices.append(data)
                shape = self.spec.get("scalar_shape", []) if not shape else shape
                self.stack(at, self.stacked_name(role, suffix), slices, dtype, shape)

    def stacked_name(self, role, suffix):
        dotted = "{suf}" in expand(self.roles[role])[0] and ".{suf}" in expand(self.roles[role])[0]
        if dotted:
            return self.role_name(role, suf=suffix)
        ending = {"weight": "", "bias": "_bias", "weight_scale_inv": "_scale_inv", "weight_scale": "_scale",
                  "blocks": "_blocks", "scales": "_scales"}[suffix]
        return self.role_name(role, suf=ending) if "{suf}" in expand(self.roles[role])[0] \
            else self.role_name(role) + ending

    def put_split(self, at, experts):
        for part in ("gate", "up", "down"):
            for suffix, (_, dtype, shape, _) in experts[0].parts[part].items():
                self.stack(at, self.role_name(f"routed_{part}_stacked", suf=suffix),
                           [x.parts[part][suffix][3] for x in experts], dtype, shape)

    def put_flat(self, at, experts):
        for part, role in (("gate", "routed_gate_flat"), ("up", "routed_up_flat"), ("down", "routed_down_flat_T")):
            slices = [x.parts[part]["weight"][3] for x in experts]
            if part == "down":
                slices = [transposed(s, self.H, self.I, 2) for s in slices]
            self.add(at + self.role_name(role), "BF16", [self.E * self.I, self.H], b"".join(slices))

    def put_shared(self, at):
        if not self.shared_width:
            return None
        if "shared_gate_up_interleaved" in self.roles:  # S experts stacked, each of width I
            xs = [Projections(self.payload, "BF16", self.I, self.H, True) for _ in range(self.S)]
            self.stack(at, self.role_name("shared_gate_up_interleaved"),
                       [interleaved(x.parts["gate"]["weight"][3], x.parts["up"]["weight"][3], self.I) for x in xs],
                       "BF16", [2 * self.I, self.H])
            self.stack(at, self.role_name("shared_down"), [x.parts["down"]["weight"][3] for x in xs], "BF16",
                       [self.H, self.I])
            return {"gate": sha(b"".join(x.parts["gate"]["weight"][3] for x in xs)),
                    "up": sha(b"".join(x.parts["up"]["weight"][3] for x in xs))}
        x = Projections(self.payload, self.shared_fmt, self.shared_width, self.H, self.gated)
        if "shared_gate_up" in self.roles:
            dtype, shape, data = self.joined(x, "weight")
            self.add(at + self.role_name("shared_gate_up", suf="weight"), dtype, shape, data)
            self.add(at + self.role_name("shared_down", suf="weight"), *x.parts["down"]["weight"][1:])
        else:
            for part, comps in x.parts.items():
                for suffix, (_, dtype, shape, data) in comps.items():
                    self.add(at + self.role_name("shared_" + part, suf=suffix), dtype, shape, data)
        return x.digests()

    def moe_layer(self, layer, mtp):
        at = self.prefix(layer, mtp)
        for role in self.roles:
            if not re.match(r"routed_|shared_(gate|up|down|gate_up)", role):
                self.add_role(at, role, layer, mtp)
        fmt = "mxfp4_packed" if self.fmt == "mxfp4_blocks" else self.fmt
        experts = [Projections(self.payload, fmt, self.I, self.latent or self.H, self.gated,
                               self.spec.get("expert_bias", False)) for _ in range(self.E)]
        if self.fmt == "mxfp4_blocks":
            for x in experts:
                for comps in x.parts.values():
                    comps["blocks"] = comps.pop("weight_packed")
                    comps["scales"] = comps.pop("weight_scale")
        put = {"per_expert": self.put_per_expert, "stacked": self.put_stacked, "split": self.put_split,
               "flat": self.put_flat}[self.spec.get("layout", "per_expert")]
        if mtp and "mtp_layout" in self.spec:
            put = self.put_per_expert
        put(at, experts)
        shared = self.put_shared(at)
        truth = {"experts": [x.digests() for x in experts]}
        if shared:
            truth["shared"] = shared
        # check_layout.py looks for layers by the number in names that have no segment "mtp".
        if not mtp or "mtp_prefix" not in self.spec:
            self.truth[str(layer)] = truth

    def dense_layer(self, layer):
        at = self.prefix(layer, False)
        block = self.spec.get("dense", "mlp")
        for n, shape in (("gate_proj", [96, self.H]), ("up_proj", [96, self.H]), ("down_proj", [self.H, 96])):
            self.add(f"{at}{block}.{n}.weight", "BF16", shape)

    def outside(self, at):
        at = re.sub(r"(mlp|ffn)\.$", "", at)
        self.add(at + "input_layernorm.weight", "BF16", [self.H])
        self.add(at + "self_attn.q_proj.weight", "BF16", [self.H, self.H])

    # ---- files

    def config(self):
        spec, keys = self.spec, self.entry["config_keys"]
        facts = {"E": self.E, "topk": self.K, "I": self.I, "H": self.H}
        config = {}

        def put(path, value):
            at = config
            *way, last = path.split(".")
            for step in way:
                at = at.setdefault(step, {})
            at[last] = value
        for fact, default in (("E", "num_experts"), ("topk", "num_experts_per_tok"), ("I", "moe_intermediate_size"),
                              ("H", "hidden_size"), ("layers", "num_hidden_layers")):
            key = spec.get("keys", {}).get(fact) or re.split(r"[ ,(]", keys.get(fact, default))[0]
            put(key, facts.get(fact, self.layers))
        for key, value in spec.get("config", {}).items():
            put(key, value)
        quant = quantization_config(self.fmt)
        if spec.get("in"):
            config = {"model_type": spec["model_type"], spec["in"]:
                      dict(config, **({"model_type": spec["text_type"]} if "text_type" in spec else {}))}
        elif spec["model_type"]:
            config["model_type"] = spec["model_type"]
        if quant:
            (config[spec["in"]] if spec.get("quant_inside") else config)["quantization_config"] = quant
        return config

    def write(self, root):
        directory = os.path.join(root, self.name)
        os.makedirs(directory)
        self.add("model.embed_tokens.weight", "BF16", [48, self.H])
        for layer in range(self.layers):
            self.outside(self.prefix(layer, False))
            if layer in self.moe:
                self.moe_layer(layer, False)
            elif "dense" not in self.spec or self.spec["dense"]:
                self.dense_layer(layer)
        for number in self.mtp:
            self.moe_layer(number, True)
            self.outside(self.prefix(number, True))
        for number in self.spec.get("mtp_dense", []):
            self.outside(self.prefix(number, True))
        for name, dtype, shape in self.spec.get("extra", []):
            self.add(name, dtype, shape)
        self.add("lm_head.weight", "BF16", [48, self.H])
        self.shards(directory)
        with open(os.path.join(directory, self.spec.get("config_file", "config.json")), "w") as f:
            json.dump(self.config(), f, indent=1)
        with open(os.path.join(directory, "experts.json"), "w") as f:
            json.dump({"schema": 1, "facts": self.facts(), "layers": self.truth}, f, indent=1)

    def facts(self):
        return {"family": self.spec.get("family", self.entry["family"]),
                "model_type": self.spec.get("seen_type", self.spec["model_type"]), "E": self.E, "K": self.K,
                "H": self.H, "I": self.I, "S": self.S, "shared_width": self.shared_width, "layers": self.layers,
                "moe_layers": self.moe, "mtp_layers": self.mtp, "routed_scaling_factor": self.spec.get("scale", 1.0),
                "n_group": self.spec.get("n_group"), "topk_group": self.spec.get("topk_group"),
                "score": self.spec["score"], "gated": self.gated, "slots": self.spec.get("slots", 0),
                "check": self.spec.get("check", True),
                "quant": None if self.fmt in ("BF16", "F16", "F32") else self.fmt,
                **({"latent": self.latent} if self.latent else {})}

    def shards(self, directory):
        """Two files, cut where a layer is in both; tensors of a file in the order of their offsets."""
        middle = len(self.tensors) // 2
        weight_map = {}
        for i, part in enumerate((self.tensors[:middle], self.tensors[middle:])):
            file = f"model-{i + 1:05d}-of-00002.safetensors"
            header, off = {"__metadata__": {"format": "pt"}}, 0
            for name, dtype, shape, data in part:
                if name in weight_map:
                    raise ValueError(f"{self.name}: {name} twice")
                header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [off, off + len(data)]}
                weight_map[name] = file
                off += len(data)
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            with open(os.path.join(directory, file), "wb") as f:
                f.write(struct.pack("<Q", len(text)) + text)
                for _, _, _, data in part:
                    f.write(data)
        with open(os.path.join(directory, "model.safetensors.index.json"), "w") as f:
            json.dump({"metadata": {"total_size": sum(len(t[3]) for t in self.tensors)},
                       "weight_map": weight_map}, f, indent=1)


# ------------------------------------------------------------- the families
# What the table says in prose. `family`: what inspect must answer, where it is not the entry's name.

M = "model.layers.{L}."
LM = "language_model.model.layers.{L}."
DS = {"n_shared_experts": 1, "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_group": 4, "topk_group": 2,
      "norm_topk_prob": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "routed_scaling_factor": 2.5,
      "hidden_act": "silu"}


def deepseek(**kw):
    """The keys and facts of DeepSeek's configs, some replaced."""
    more = kw.pop("config", {})
    spec = {"config": {**DS, **more}, "S": 1, "slots": 1, "score": "sigmoid", "scale": 2.5, "n_group": 4,
            "topk_group": 2}
    for key, value in more.items():
        if value is None and key not in ("routed_scaling_factor", "n_shared_experts"):
            del spec["config"][key]
    spec.update(kw)
    return spec


def mtp_after(spec, n=1):
    """MTP layers numbered on from the decoder's."""
    return dict(spec, mtp=[spec.get("layers", 3) + i for i in range(n)],
                config=dict(spec["config"], num_nextn_predict_layers=n))


FP8 = {"E": 4, "H": 256, "I": 128}
ONE_GROUP = {"n_group": 1, "topk_group": 1}
V2 = deepseek(S=2, slots=2, score="softmax", scale=16.0, config={
    "n_shared_experts": 2, "norm_topk_prob": False, "scoring_func": "softmax", "topk_method": "group_limited_greedy",
    "routed_scaling_factor": 16.0})
K2 = deepseek(scale=2.827, config={**ONE_GROUP, "routed_scaling_factor": 2.827}, **ONE_GROUP)
MOONLIGHT = deepseek(S=2, slots=2, scale=2.446, **ONE_GROUP,
                     config={**ONE_GROUP, "n_shared_experts": 2, "routed_scaling_factor": 2.446})
KIMI = dict(score="sigmoid", scale=2.446, **ONE_GROUP, config={
    "num_expert_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "moe_renormalize": True,
    "moe_router_activation_func": "sigmoid", "routed_scaling_factor": 2.446, "num_shared_experts": 1})
GLM = deepseek(**ONE_GROUP, config={**ONE_GROUP, "scoring_func": None, "topk_method": None, "moe_layer_freq": None})
QWEN = dict(score="softmax", moe=[0, 1, 2], config={"norm_topk_prob": True, "decoder_sparse_step": 1,
                                                  "mlp_only_layers": []})
GATED = dict(QWEN, S=1, slots=1, config=dict(QWEN["config"], shared_expert_intermediate_size=32))
QWEN35 = dict(GATED, prefix="model.language_model.layers.{L}.", model_type="qwen3_5_moe", **{"in": "text_config"},
              text_type="qwen3_5_moe_text", keys={"H": "hidden_size"}, mtp=[0], mtp_prefix="mtp.layers.{L}.",
              config={"shared_expert_intermediate_size": 32})
MIXTRAL = dict(score="softmax", moe=[0, 1, 2], config={})
M3 = dict(model_type="minimax_m3", prefix=LM, **{"in": "text_config"}, S=1, slots=1, score="sigmoid", scale=2.0,
          router_dtype="F32", config={"n_shared_experts": 1, "shared_intermediate_size": 32,
                                      "dense_intermediate_size": 96, "moe_layer_freq": [0, 1, 1],
                                      "routed_scaling_factor": 2.0, "scoring_func": "sigmoid"})
STEP = dict(layout="split", S=1, slots=1, score="softmax", keys={"layers": "num_hidden_layers"},
            config={"share_expert_dim": 32, "moe_layers_enum": "1,2", "norm_expert_weight": False})
NEMOTRON = dict(model_type="nemotron_h", prefix="backbone.layers.{L}.", S=1, shared_width=64, slots=2, score="sigmoid",
                scale=2.5, **ONE_GROUP, layers=4, moe=[1, 3], dense="", keys={"layers": "num_hidden_layers"},
                config={"n_shared_experts": 1, "moe_shared_expert_intermediate_size": 64,
                        "hybrid_override_pattern": "MEME", "mlp_hidden_act": "relu2", "n_group": 1, "topk_group": 1,
                        "norm_topk_prob": True, "routed_scaling_factor": 2.5})
HY = dict(S=1, slots=1, score="sigmoid", scale=2.826, config={
    "num_shared_experts": 1, "first_k_dense_replace": 1, "moe_router_enable_expert_bias": True,
    "moe_router_use_sigmoid": True, "router_scaling_factor": 2.826})
HUNYUAN = dict(model_type="hunyuan_v1_moe", S=1, slots=1, score="softmax", moe=[0, 1, 2], config={
    "num_shared_expert": 1, "intermediate_size": 32, "use_mixed_mlp_moe": True})
BAILING = dict(S=1, slots=1, score="sigmoid", scale=2.5, n_group=4, topk_group=2, config={
    "num_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2, "norm_topk_prob": True,
    "score_function": "sigmoid", "moe_router_enable_expert_bias": True, "routed_scaling_factor": 2.5})
ERNIE = dict(model_type="ernie4_5_moe", S=2, slots=2, score="softmax", router_dtype="F32", bias_shape=[1, 8], config={
    "moe_num_shared_experts": 2, "moe_layer_start_index": 1, "moe_layer_end_index": 2, "moe_layer_interval": 1})
LARGE3 = dict(S=1, slots=1, score="softmax", keys={"H": "dim", "layers": "n_layers"}, dense="feed_forward", config={
    "moe.num_shared_experts": 1, "moe.first_k_dense_replace": 1, "moe.route_every_n": 1, "moe.routed_scale": 1.0,
    "moe.num_expert_groups": 1, "moe.num_expert_groups_per_tok": 1}, n_group=1, topk_group=1)
INKLING = dict(model_type="inkling_mm_model", text_type="inkling", **{"in": "text_config"}, layout="stacked",
               interleaved=True, S=2, sink=True, score="sigmoid", scale=8.0, dense="", config={
                   "n_routed_experts": 8, "n_shared_experts": 2, "dense_mlp_idx": 1, "route_scale": 8.0},
               keys={"E": "n_routed_experts"})
GPT = dict(layout="stacked", interleaved=True, score="logit", moe=[0, 1, 2], expert_bias=True,
           keys={"I": "intermediate_size", "topk": "num_experts_per_tok"}, config={"swiglu_limit": 7.0})
GEMMA = dict(model_type="gemma4", text_type="gemma4_text", **{"in": "text_config"}, layout="stacked", score="softmax",
             moe=[0, 1, 2], config={"intermediate_size": 96, "hidden_activation": "gelu_pytorch_tanh"})
V4 = deepseek(model_type="deepseek_v4", prefix="layers.{L}.", score="sqrtsoftplus", scale=1.5, moe=[0, 1, 2],
              n_group=None, topk_group=None, slots=0, hash_layers=1, fmt="mxfp4_deepseek", shared_fmt="fp8_block_e8m0",
              config={"first_k_dense_replace": None, "moe_layer_freq": None, "n_group": None, "topk_group": None,
                      "scoring_func": "sqrtsoftplus", "routed_scaling_factor": 1.5, "num_hash_layers": 1,
                      "swiglu_limit": 10.0}, E=8, H=128, I=64)

# names.mistral4: "HF form: mlp.experts.gate_up_proj + gate_up_proj_scale_inv [E,1,1] (no .weight)"; not in `match`.
MISTRAL4 = {"router_weight": "mlp\\.gate\\.weight$",
            "routed_gate_up_stacked": "mlp\\.experts\\.gate_up_proj(?P<suf>_scale_inv)?$",
            "routed_down_stacked": "mlp\\.experts\\.down_proj(?P<suf>_scale_inv)?$",
            **{f"shared_{p}": f"mlp\\.shared_experts\\.{p}_proj\\.(?P<suf>weight)$" for p in ("gate", "up", "down")}}

# (tree, family, spec)
TREES = [
    ("deepseek_v2", "deepseek_v2", dict(V2, model_type="deepseek_v2")),
    ("deepseek_v2-fp8bf16", "deepseek_v2", dict(V2, model_type="deepseek_v2", fmt="fp8_block", shared_fmt="BF16",
                                                **FP8, slots=0)),
    ("deepseek_v3", "deepseek_v3", mtp_after(dict(deepseek(), model_type="deepseek_v3"))),
    ("deepseek_v3-fp8", "deepseek_v3", mtp_after(dict(deepseek(config=ONE_GROUP, fmt="fp8_block", **FP8, **ONE_GROUP),
                                                      model_type="deepseek_v3"))),
    ("deepseek_v3-nvfp4", "deepseek_v3", dict(deepseek(), model_type="deepseek_v32", fmt="nvfp4", shared_fmt="BF16",
                                              slots=0)),
    ("deepseek_v4", "deepseek_v4", V4),
    ("deepseek_v4-mtp", "deepseek_v4", dict(V4, mtp=[0], mtp_prefix="mtp.{L}.", check=False,
                                            config=dict(V4["config"], num_nextn_predict_layers=1))),
    ("deepseek_v4-fp8", "deepseek_v4", dict(V4, fmt="fp8_block_dot", shared_fmt="fp8_block_dot", slots=1, **FP8,
                                            config=dict(V4["config"], expert_dtype="fp8"))),
    ("deepseek_v4-bf16", "deepseek_v4", dict(V4, fmt="BF16", shared_fmt="BF16", slots=1, H=64, I=32)),
    ("kimi_k2", "kimi_k2", dict(K2, model_type="kimi_k2", prefix=M,
                                extra=[("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", [8])])),
    ("kimi_k2-fp8", "kimi_k2", dict(K2, model_type="kimi_k2", prefix=M, fmt="fp8_block", **FP8)),
    ("kimi_k2-int4", "kimi_k2", dict(K2, model_type="kimi_k25", text_type="kimi_k2", prefix=LM,
                                     **{"in": "text_config"}, quant_inside=True, fmt="int4", shared_fmt="BF16",
                                     slots=0)),
    ("kimi_k2-nvfp4", "kimi_k2", dict(K2, model_type="kimi_k25", text_type="deepseek_v3", prefix=LM,
                                      **{"in": "text_config"}, fmt="nvfp4", shared_fmt="BF16", slots=0)),
    ("moonlight", "moonlight", dict(MOONLIGHT, model_type="deepseek_v3")),
    ("kimi_linear", "kimi_linear", dict(KIMI, model_type="kimi_linear", S=1, slots=1)),
    ("kimi_k3", "kimi_k3", dict(KIMI, model_type="kimi_k3", text_type="kimi_linear", **{"in": "text_config"}, S=2,
                                scale=1.0, latent=32, fmt="mxfp4_packed", shared_fmt="BF16",
                                config=dict(KIMI["config"], num_shared_experts=2, routed_expert_hidden_size=32,
                                            routed_scaling_factor=1.0, latent_moe_use_norm=True))),
    ("kimi_k3-bf16", "kimi_k3", dict(KIMI, model_type="kimi_k3", text_type="kimi_linear", **{"in": "text_config"}, S=2,
                                     latent=32, config=dict(KIMI["config"], num_shared_experts=2,
                                                            routed_expert_hidden_size=32))),
    ("glm4_moe", "glm4_moe", mtp_after(dict(GLM, model_type="glm4_moe"))),
    ("glm4_moe-v", "glm4_moe", dict(GLM, model_type="glm4v_moe", text_type="glm4v_moe_text", **{"in": "text_config"},
                                    config=GLM["config"])),
    ("glm4_moe-lite", "glm4_moe", mtp_after(dict(GLM, model_type="glm4_moe_lite"))),
    ("glm4_moe-dsa", "glm4_moe", mtp_after(dict(GLM, model_type="glm_moe_dsa", fmt="fp8_block", **FP8, config=dict(
        {k: v for k, v in GLM["config"].items() if k != "first_k_dense_replace"},
        mlp_layer_types=["dense", "sparse", "sparse"])))),
    ("glm4_moe-nvfp4", "glm4_moe", dict(GLM, model_type="glm_moe_dsa", fmt="nvfp4", shared_fmt="BF16", slots=0,
                                        config=dict(GLM["config"], num_experts=8))),
    ("qwen2_moe", "qwen2_moe", dict(GATED, model_type="qwen2_moe", E=12, shared_width=128, slots=4, moe=[0, 2],
                                    config={"shared_expert_intermediate_size": 128, "norm_topk_prob": False,
                                            "decoder_sparse_step": 1, "mlp_only_layers": [1]})),
    ("qwen3_moe", "qwen3_moe", dict(QWEN, model_type="qwen3_moe")),
    ("qwen3_moe-fp8", "qwen3_moe", dict(QWEN, model_type="qwen3_moe", fmt="fp8_block", **FP8)),
    ("qwen3_moe-nvfp4", "qwen3_moe", dict(QWEN, model_type="qwen3_moe", fmt="nvfp4")),
    ("qwen3_vl_moe", "qwen3_vl_moe", dict(QWEN, model_type="qwen3_vl_moe", text_type="qwen3_vl_moe_text",
                                          **{"in": "text_config"}, layout="stacked", transposed=True)),
    ("qwen3_vl_moe-square", "qwen3_vl_moe", dict(QWEN, model_type="qwen3_vl_moe", **{"in": "text_config"}, I=64,
                                                 layout="stacked", transposed=True)),
    ("qwen3_vl_moe-resaved", "qwen3_vl_moe", dict(QWEN, model_type="qwen3_vl_moe", **{"in": "text_config"},
                                                  layout="stacked")),
    ("qwen3_vl_moe-fp8", "qwen3_vl_moe", dict(QWEN, model_type="qwen3_vl_moe", **{"in": "text_config"},
                                              layout="stacked", transposed=True, fmt="fp8_block", **FP8)),
    ("qwen3_next", "qwen3_next", dict(GATED, model_type="qwen3_next", prefix=M, mtp=[0],
                                      mtp_prefix="mtp.layers.{L}.")),
    ("qwen3_next-fp8", "qwen3_next", dict(GATED, model_type="qwen3_next", prefix=M, fmt="fp8_block", **FP8, config=dict(
        GATED["config"], shared_expert_intermediate_size=128))),
    ("qwen3_5_moe", "qwen3_5_moe", dict(QWEN35, layout="stacked")),
    ("qwen3_5_moe-mixed", "qwen3_5_moe", dict(QWEN35, layout="stacked", mtp_layout="per_expert")),
    ("qwen3_5_moe-fp8", "qwen3_5_moe", dict(QWEN35, fmt="fp8_block", **FP8, config={
        "shared_expert_intermediate_size": 128})),
    ("llama4", "llama4", dict(model_type="llama4", text_type="llama4_text", **{"in": "text_config"}, layout="stacked",
                              transposed=True, S=1, slots=1, K=1, score="logit", layers=4, moe=[1, 3],
                              dense="feed_forward", config={"interleave_moe_layer_step": 2,
                                                            "intermediate_size_mlp": 96})),
    ("llama4-fp8", "llama4", dict(model_type="llama4", **{"in": "text_config"}, fmt="fp8_row", shared_fmt="BF16", S=1,
                                  K=1, score="logit", layers=2, moe=[0, 1], config={"interleave_moe_layer_step": 1})),
    ("mixtral", "mixtral", dict(MIXTRAL, model_type="mixtral")),
    ("dbrx", "dbrx", dict(model_type="dbrx", layout="flat", score="softmax", moe=[0, 1, 2],
                          config={"ffn_config.moe_normalize_expert_weights": 1.0})),
    ("gpt_oss", "gpt_oss", dict(GPT, model_type="gpt_oss", fmt="mxfp4_blocks", H=64, I=64)),
    ("gpt_oss-bf16", "gpt_oss", dict(GPT, model_type="gpt_oss", transposed=True, H=64, I=64)),
    ("minimax_m2", "minimax_m2", dict(MIXTRAL, model_type="minimax_m2", score="sigmoid", router_dtype="F32", config={
        "use_routing_bias": True, "shared_intermediate_size": 0, "scoring_func": "sigmoid"})),
    ("minimax_m2-old", "minimax_m2", dict(MIXTRAL, model_type="minimax", score="sigmoid", router_dtype="F32", config={
        "use_routing_bias": True, "shared_intermediate_size": 0})),
    ("minimax_m2-fp8", "minimax_m2", dict(MIXTRAL, model_type="minimax_m2", score="sigmoid", router_dtype="F32",
                                          fmt="fp8_block", **FP8, config={"use_routing_bias": True})),
    ("minimax_m2-nvfp4", "minimax_m2", dict(MIXTRAL, model_type="minimax_m2", score="sigmoid", router_dtype="F32",
                                            fmt="nvfp4", config={"use_routing_bias": True})),
    ("minimax_m3", "minimax_m3", M3),
    ("minimax_m3-mxfp8", "minimax_m3", dict(M3, fmt="mxfp8")),
    ("minimax_m3-resaved", "minimax_m3", dict(M3, prefix=M, model_type="minimax_m3_vl", keys={
        "I": "moe_intermediate_size"}, config=dict(
            {k: v for k, v in M3["config"].items() if k != "moe_layer_freq"}, intermediate_size=96,
            mlp_layer_types=["dense", "sparse", "sparse"]))),
    ("minimax_text_01", "minimax_text_01", dict(MIXTRAL, model_type="minimax_text_01", config={
        "shared_intermediate_size": 0, "shared_moe_mode": "softmax"})),
    ("minimax_text_01-shared", "minimax_text_01", dict(
        MIXTRAL, model_type="minimax", S=1, shared_width=64,
        extra=[(f"model.layers.{i}.coefficient.weight", "BF16", [1, 64]) for i in range(3)],
        config={"shared_intermediate_size": 64, "shared_moe_mode": "sigmoid"})),
    ("hunyuan_moe", "hunyuan_moe", HUNYUAN),
    ("hunyuan_moe-lists", "hunyuan_moe", dict(HUNYUAN, model_type="hunyuan", keys={"I": "unused"}, config={
        "num_experts": [8, 8, 8], "moe_topk": [2, 2, 2], "num_shared_expert": [1, 1, 1], "intermediate_size": 32,
        "moe_intermediate_size": [32, 32, 32], "use_mixed_mlp_moe": True})),
    ("hunyuan_moe-fp8", "hunyuan_moe", dict(HUNYUAN, fmt="fp8_tensor")),
    ("hunyuan_moe-int4", "hunyuan_moe", dict(HUNYUAN, fmt="int4")),
    ("hy_v3", "hy_v3", mtp_after(dict(HY, model_type="hy_v3"))),
    ("ernie4_5_moe", "ernie4_5_moe", ERNIE),
    ("ernie4_5_moe-noshared", "ernie4_5_moe", dict(ERNIE, S=0, slots=0, layers=4, moe=[1, 3], config={
        "moe_num_shared_experts": 0, "moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 2})),
    ("dots1", "dots1", dict(deepseek(S=2, slots=2, config={"n_shared_experts": 2, "scoring_func": "noaux_tc"}),
                            model_type="dots1")),
    ("bailing_moe", "bailing_moe", mtp_after(dict(BAILING, model_type="bailing_moe_v2"))),
    ("bailing_moe-v1", "bailing_moe", dict(model_type="bailing_moe", S=2, slots=2, score="softmax", moe=[0, 1, 2],
                                           config={"num_shared_experts": 2, "norm_topk_prob": True})),
    ("bailing_moe-fp8", "bailing_moe", dict(BAILING, model_type="bailing_moe_v2", fmt="fp8_block", **FP8, **ONE_GROUP,
                                            config=dict(BAILING["config"], moe_shared_expert_intermediate_size=128,
                                                        **ONE_GROUP))),
    ("longcat_flash", "longcat_flash", dict(model_type="longcat_flash", Z=4, score="softmax", scale=6.0,
                                            moe=[0, 1, 2], config={
                                                "zero_expert_num": 4, "zero_expert_type": "identity",
                                                "routed_scaling_factor": 6.0},
                                            extra=[(f"model.layers.{i}.mlps.{j}.gate_proj.weight", "BF16", [96, 64])
                                                   for i in range(3) for j in range(2)])),
    ("longcat_flash-fp8", "longcat_flash", dict(model_type="longcat_flash", Z=4, score="softmax", scale=6.0,
                                                moe=[0, 1, 2], fmt="fp8_block", **FP8, config={
                                                    "zero_expert_num": 4, "routed_scaling_factor": 6.0})),
    ("step3", "step3", dict(STEP, model_type="step3_text", pick="\0")),
    ("step3-flash", "step3", dict(STEP, model_type="step3p7", text_type="step3p5", **{"in": "text_config"}, scale=3.0,
                                  score="sigmoid", mtp=[], config={
                                      "share_expert_dim": 32, "moe_layers_enum": [1, 2], "norm_expert_weight": True,
                                      "use_moe_router_bias": True, "moe_router_activation": "sigmoid",
                                      "moe_router_scaling_factor": 3.0})),
    ("step3-fp8", "step3", dict(STEP, model_type="step3p5", fmt="fp8_block", **FP8, config=dict(
        STEP["config"], share_expert_dim=128))),
    ("granite_moe", "granite_moe", dict(model_type="granitemoehybrid", layout="stacked", S=1, shared_width=64, slots=2,
                                        score="softmax", moe=[0, 1, 2], config={"shared_intermediate_size": 64})),
    ("granite_moe-noshared", "granite_moe", dict(model_type="granitemoe", layout="stacked", score="softmax",
                                                 moe=[0, 1, 2], config={})),
    # One number for gate and up of an expert: check_layout.py wants every byte of the source once.
    ("granite_moe-fp8", "granite_moe", dict(model_type="granitemoe", layout="stacked", fmt="fp8_granite",
                                            score="softmax", moe=[0, 1, 2], config={}, check=False)),
    ("olmoe", "olmoe", dict(QWEN, model_type="olmoe", keys={"I": "intermediate_size"}, config={
        "norm_topk_prob": False})),
    ("olmoe-flex", "olmoe", dict(QWEN, model_type="flex_olmo", keys={"I": "intermediate_size"}, config={})),
    ("phimoe", "phimoe", dict(MIXTRAL, model_type="phimoe", score="sparsemixer", config={
        "router_jitter_noise": 0.01})),
    ("jamba", "jamba", dict(model_type="jamba", score="softmax", layers=4, moe=[1, 3], dense="feed_forward", config={
        "expert_layer_period": 2, "expert_layer_offset": 1})),
    ("nemotron_h", "nemotron_h", NEMOTRON),
    ("nemotron_h-super", "nemotron_h", dict(
        NEMOTRON, latent=32, slots=0, mtp=[1], mtp_dense=[0], mtp_prefix="mtp.layers.{L}.", config=dict(
            {k: v for k, v in NEMOTRON["config"].items() if k != "hybrid_override_pattern"}, moe_latent_size=32,
            layers_block_type=["mamba", "moe", "attention", "moe"], num_nextn_predict_layers=1,
            mtp_hybrid_override_pattern="*E"))),
    # A number for both parts of a split shared expert: not once each either.
    ("nemotron_h-fp8", "nemotron_h", dict(NEMOTRON, fmt="fp8_tensor", check=False)),
    ("nemotron_h-nvfp4", "nemotron_h", dict(NEMOTRON, fmt="nvfp4", shared_fmt="BF16", slots=0)),
    ("mimo_v2", "mimo_v2", deepseek(model_type="mimo_v2_flash", S=0, slots=0, scale=1.0, **ONE_GROUP, mtp_dense=[0],
                                    mtp_prefix="model.mtp.layers.{L}.", config={
                                        **ONE_GROUP, "n_shared_experts": None, "routed_scaling_factor": None,
                                        "first_k_dense_replace": None, "moe_layer_freq": [0, 1, 1]})),
    ("mimo_v2-fp8", "mimo_v2", deepseek(model_type="mimo_v2", S=0, slots=0, scale=1.0, **ONE_GROUP, fmt="fp8_block",
                                        **FP8, config={**ONE_GROUP, "n_shared_experts": None,
                                                       "routed_scaling_factor": None, "first_k_dense_replace": None,
                                                       "moe_layer_freq": [0, 1, 1]})),
    ("afmoe", "afmoe", dict(model_type="afmoe", S=2, slots=2, score="sigmoid", scale=2.448, config={
        "num_shared_experts": 2, "num_dense_layers": 1, "score_func": "sigmoid", "route_norm": True,
        "route_scale": 2.448, "num_expert_groups": 1})),
    ("grok", "grok", dict(MIXTRAL, model_type="git", keys={"I": "moe_intermediate_size"}, config={
        "intermediate_size": 96, "router_logit_softcapping": 30.0, "residual_moe": True},
        extra=[(f"model.layers.{i}.mlp.gate_proj.weight", "BF16", [96, 64]) for i in range(3)])),
    ("grok-1", "grok", dict(MIXTRAL, model_type="grok-1", keys={"I": "intermediate_size"}, routed_names={
        "gate": "block_sparse_moe.experts.{E}.linear.{suf}", "up": "block_sparse_moe.experts.{E}.linear_v.{suf}",
        "down": "block_sparse_moe.experts.{E}.linear_1.{suf}"})),
    ("mistral_large_3", "mistral_large_3", dict(LARGE3, model_type="mistral_large_3")),
    ("mistral_large_3-params", "mistral_large_3", dict(LARGE3, model_type=None, seen_type="none", fmt="fp8_mistral",
                                                       config_file="params.json")),
    ("mistral_large_3-ds", "mistral_large_3", dict(LARGE3, model_type="deepseek_v3")),
    ("mistral_large_3-mistral4", "mistral_large_3", deepseek(
        model_type="mistral4", roles=MISTRAL4, prefixes=[M], layout="stacked", fmt="fp8_stacked", shared_fmt="BF16",
        slots=0, scalar_shape=[1, 1], check=False, keys={
            "E": "n_routed_experts", "topk": "num_experts_per_tok", "I": "moe_intermediate_size"})),
    ("gemma4_moe", "gemma4_moe", dict(GEMMA, pick="experts.")),
    ("gemma4_moe-old", "gemma4_moe", dict(GEMMA, pick="moe.")),
    ("gemma4_moe-nvfp4", "gemma4_moe", dict(GEMMA, layout="per_expert", fmt="nvfp4", routed_names={
        "gate": "experts.{E}.gate_proj.{suf}", "up": "experts.{E}.up_proj.{suf}",
        "down": "experts.{E}.down_proj.{suf}"})),
    ("inkling", "inkling", INKLING),
    ("exaone_moe", "exaone_moe", mtp_after(dict(deepseek(), model_type="exaone_moe"))),
    ("exaone_moe-flags", "exaone_moe", dict(deepseek(), model_type="exaone_moe", keys={"E": "num_experts"}, config={
        **{k: v for k, v in DS.items() if k not in ("first_k_dense_replace", "n_shared_experts")},
        "num_shared_experts": 1, "is_moe_layer": [False, True, True]})),
    ("lfm2_moe", "lfm2_moe", dict(model_type="lfm2_moe", score="sigmoid", dense="feed_forward", config={
        "num_dense_layers": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0, "use_expert_bias": True})),
]


# Keys that an entry says in words ("like deepseek_v3") or not at all.
KEYS = {
    "exaone_moe": {"E": "n_routed_experts", "layers": "num_hidden_layers"},
    "mixtral": {}, "inkling": {"layers": "num_hidden_layers"},
}


def entries():
    with open(os.path.join(HERE, "families.json")) as f:
        return {e["family"]: e for e in json.load(f)}


def main():
    table = entries()
    missing = set(table) - {family for _, family, _ in TREES}
    if missing:
        sys.exit(f"families without a tree: {sorted(missing)}")
    if sys.argv[1:] == ["--list"]:
        print("\n".join(name for name, _, _ in TREES))
        return
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    wanted = sys.argv[2:]
    for name, family, spec in TREES:
        if wanted and name not in wanted and family not in wanted:
            continue
        spec = dict(spec, keys={**KEYS.get(family, {}), **spec.get("keys", {})})
        Tree(table[family], name, spec).write(sys.argv[1])


if __name__ == "__main__":
    main()
