# SPDX-License-Identifier: Apache-2.0
"""Scenes of the commands and options that the sweep of allocations adds to
scenes.py's, and the smallest model that all of them take."""

import json
import os
import random
import shutil
import struct

import scenes
from scenes import Failure, Scene, must

E, K, LAYERS, H, I, VOCAB = 4, 2, 2, 32, 16, 8
FORMS = ("sglang", "trtllm", "vllm-ascend", "vllm", "eplb", "phy2log",
         "log2phy", "logcnt")
# Files that memory was short for are read again with less of it, and what short
# rows have to tell is told twice.
READ_AGAIN = ("verify-bad",)
REPORTS = ("text", "sarif", "junit", "github", "markdown", "prometheus")


# ------------------------------------------------------------------ a model

def write_safetensors(path, tensors, metadata=None):
    """tensors: name, dtype, shape, bytes."""
    header, at = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    for name, dtype, shape, raw in tensors:
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [at, at + len(raw)]}
        at += len(raw)
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.writelines(raw for *_, raw in tensors)


def tiny(to, seed=1):
    """A Mixtral of two layers and four experts, in two shards."""
    rng = random.Random(seed)

    def bf16(name, *shape):
        n = 1
        for d in shape:
            n *= d
        raw = b"".join(struct.pack("<f", rng.gauss(0, 0.1))[2:]
                       for _ in range(n))
        return name, "BF16", list(shape), raw

    parts = []
    for i in range(LAYERS):
        p = "model.layers.%d." % i
        m = p + "block_sparse_moe."
        parts.append([
            bf16(p + "input_layernorm.weight", H),
            bf16(p + "post_attention_layernorm.weight", H),
            *(bf16(p + "self_attn.%s_proj.weight" % x, H, H) for x in "qkvo"),
            bf16(m + "gate.weight", E, H),
            *(bf16(m + "experts.%d.%s.weight" % (e, w),
                   *((H, I) if w == "w2" else (I, H)))
              for e in range(E) for w in ("w1", "w2", "w3"))])
    parts[0].append(bf16("model.embed_tokens.weight", VOCAB, H))
    parts[-1] += [bf16("model.norm.weight", H), bf16("lm_head.weight", VOCAB, H)]
    os.mkdir(to)
    names = {}
    for k, part in enumerate(parts):
        name = "model-%05d-of-%05d.safetensors" % (k + 1, len(parts))
        write_safetensors(os.path.join(to, name), part, {"format": "pt"})
        names.update((t[0], name) for t in part)
    put(to, "model.safetensors.index.json", {
        "metadata": {"total_size": sum(len(t[3]) for p in parts for t in p)},
        "weight_map": names})
    put(to, "config.json", {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
        "hidden_act": "silu", "hidden_size": H, "intermediate_size": I,
        "num_attention_heads": 2, "num_key_value_heads": 2,
        "num_experts_per_tok": K, "num_hidden_layers": LAYERS,
        "num_local_experts": E, "torch_dtype": "bfloat16",
        "vocab_size": VOCAB, "rms_norm_eps": 1e-5})


def put(scratch, name, value):
    with open(os.path.join(scratch, name), "w") as f:
        json.dump(value, f)


# ------------------------------------------------------------- other inputs

def put_inputs(scratch):
    """Placements, counts, routes, logits, a policy, vectors."""
    rng = random.Random(2)
    put(scratch, "counts.json", [[rng.randrange(1, 100) for _ in range(E)]
                                 for _ in range(LAYERS)])
    put(scratch, "other.json", [[3, 2, 1, 0], [0, 1, 3, 2]])
    corpora = os.path.join(scenes.ROOT, "fixtures", "corpora", "placement")
    for name in ("sglang.pt", "eplb.npz"):
        shutil.copy(os.path.join(corpora, name), scratch)
    tokens = 6
    rows = [[[(t + i + k) % E for k in range(K)] for i in range(LAYERS)]
            for t in range(tokens)]
    ids = bytes(x for row in rows for layer in row for x in layer)
    text = str({"descr": "|u1", "fortran_order": False,
                "shape": (tokens, LAYERS, K)}).ljust(117) + "\n"
    with open(os.path.join(scratch, "routes.npy"), "wb") as f:
        f.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) +
                text.encode() + ids)
    write_safetensors(os.path.join(scratch, "logits.safetensors"), [
        ("layers.%d.router_logits" % i, "F32", [tokens, E], b"".join(
            struct.pack("<%df" % E, *(4.0 - row[i].index(e)
                                      if e in row[i] else 0.0
                                      for e in range(E))) for row in rows))
        for i in range(LAYERS)])
    put(scratch, "policy.json", {"schema": "moec.policy/1",
                                 "severity": {"MOE-P09": "error"}})
    put(scratch, "limits.json", {"schema": "moec.policy/1",
                                 "max_rank_bytes": 1})
    vectors = os.path.join(scratch, "vectors")
    os.mkdir(vectors)
    for name in ("eplb", "expert_choice", "waterfill"):
        with open(os.path.join(scenes.ROOT, "fixtures", "vectors",
                               name + ".json")) as f:
            text = json.load(f)
        text["cases"] = sorted(
            text["cases"], key=lambda c: len(json.dumps(c)))[:2]
        put(vectors, name + ".json", text)


def made_inputs(scratch):
    """What the program itself makes of them."""
    os.mkdir(os.path.join(scratch, "forms"))
    for form in FORMS:
        must(["placement", "export", "map.json", "forms/" + form, "--format",
              form, "--source", "src", "--ep", "2"], scratch)
    must(["placement", "export", "map.json", "forms/phy2log.npy", "--format",
          "phy2log", "--npy", "--source", "src", "--ep", "2"], scratch)
    must(["routes", "import", "routes.npy", "--source", "src", "--out",
          "routes.safetensors", "--request", "a"], scratch)
    must(["routes", "import", "routes.npy", "--source", "src", "--out",
          "routes2.safetensors", "--request", "b"], scratch)
    must(["routes", "export", "routes.safetensors", "routes.json", "--format",
          "sglang"], scratch)
    must(["convert", "src", "store", "--shard-by", "expert", "--threads", "1"],
         scratch)
    shutil.copytree(os.path.join(scratch, "made", "conv"),
                    os.path.join(scratch, "bad"))
    bad = os.path.join(scratch, "bad")
    name = next(n for n in sorted(os.listdir(bad)) if "rank" in n)
    with open(os.path.join(bad, name), "r+b") as f:
        f.seek(3 * 4096 + 1)  # a weight of layer 1
        byte = f.read(1)[0]
        f.seek(3 * 4096 + 1)
        f.write(bytes([byte ^ 1]))
    os.mkdir(os.path.join(scratch, "lone"))
    shutil.copy(os.path.join(scratch, "src", "model-00001-of-00002.safetensors"),
                os.path.join(scratch, "lone", "1.safetensors"))
    hub = os.path.join(scratch, "hub", "models--some--tiny")
    os.makedirs(os.path.join(hub, "refs"))
    shutil.copytree(os.path.join(scratch, "src"),
                    os.path.join(hub, "snapshots", "0" * 40))
    with open(os.path.join(hub, "refs", "main"), "w") as f:
        f.write("0" * 40)


# ------------------------------------------------------------------- scenes

def of_models():
    """What reads a model or a conversion and answers."""
    src, conv, one = "../src", "../made/conv", ["--threads", "1"]
    kernels = ["--level", "kernels", "--source", src, *one]
    yield "inspect-text", ["inspect", src, "-v"]
    yield "inspect-conv", ["inspect", conv, "--json"]
    yield "inspect-file", ["inspect", "../lone/1.safetensors", "--json"]
    yield "inspect-hub", ["inspect", "some/tiny", "--json"]
    yield "families", ["inspect", "--list-families"]
    yield "plan-text", ["plan", src, "--ep", "2", "-v"]
    yield "plan-placed", ["plan", src, "--ep", "2", "--placement",
                          "../map.json", "--json"]
    yield "plan-counts", ["plan", src, "--ep", "2", "--redundant", "2",
                          "--logical-count", "../counts.json", "--json"]
    yield "plan-moec", ["plan", src, "--ep", "2", "--logical-count",
                        "../counts.json", "--planner", "moec", "--from",
                        "../map.json", "--max-moves", "2", "--json"]
    yield "explain-rule", ["explain", "MOE-H07"]
    yield "explain-list", ["explain", "--list"]
    yield "explain-src", ["explain", src, "--layer", "1", "--expert", "2",
                          "--ep", "2"]
    yield "check-conv", ["check", conv, "--level", "digests", "--json", *one]
    yield "check-kernels", ["check", conv, *kernels, "--format", "markdown"]
    yield "check-matrix", ["check", src, "--matrix", "1,2:0,2", "--json"]
    yield "check-kinds", ["check", "--mutate", "list"]
    yield "check-mutate", ["check", src, "--ep", "2", "--mutate",
                           "all", "--json"], 1
    yield "check-policy", ["check", src, "--ep", "2", "--policy",
                           "../policy.json", "--baseline", "../baseline.json",
                           "--format", "prometheus"]
    yield "verify-bad", ["verify", "../bad", *one, "--json"], 1
    for form in REPORTS:
        yield form, ["check", src, "--ep", "2", "--policy", "../limits.json",
                     "--format", form], 1
    yield "validate-text", ["validate", conv, "--source", src, *one, "-v"]
    yield "validate-bad", ["validate", "../bad", "--source", src, *one,
                           "--format", "sarif"], 1
    yield "load-tp", ["load", src, "--rank", "1", "--ep", "2", "--tp", "2",
                      "--tp-rank", "1"]
    yield "load-store", ["load", "../store", "--rank", "1", "--ep", "2",
                         "--verify", "sha256", "--json"]
    yield "selftest", ["selftest", "--vectors", "../vectors", "--json"]
    yield "diff-maps", ["diff", "../map.json", "../other.json", "--source",
                        src, "--ep", "2", "--json"], 1
    yield "diff-convs", ["diff", conv, "../old/out"], 1
    yield "diff-source", ["diff", src, conv, "--json"]
    yield "diff-models", ["diff", src, "../src2", "--format", "sarif"], 1
    yield "dry-convert", ["convert", src, "out", "--ep", "2", "--dry-run",
                          "--json"]
    yield "dry-place", ["place", conv, "--placement", "../map.json",
                        "--dry-run"]
    yield "dry-unconvert", ["unconvert", conv, "out", "--dry-run"]


def of_placements():
    model = ["--source", "../src", "--ep", "2"]
    for form in FORMS:
        yield "export-" + form, ["placement", "export", "../map.json",
                                 "--format", form, *model]
        if form != "logcnt":
            yield "import-" + form, ["placement", "import", "../forms/" + form,
                                     *model]
    yield "import-npy", ["placement", "import", "../forms/phy2log.npy", *model]
    yield "import-pt", ["placement", "import", "../sglang.pt"]
    yield "import-npz", ["placement", "import", "../eplb.npz", "--moe-layers",
                         "0-2"]
    yield "import-robin", ["placement", "import", "--strategy", "round_robin",
                           *model]
    yield "check-yaml", ["placement", "check", "../forms/trtllm", *model,
                         "--format", "junit"]
    yield "eplb", ["placement", "eplb", "--logical-count", "../counts.json",
                   "--redundant", "2", *model, "--json"]
    yield "eplb-moec", ["placement", "eplb", "--logical-count",
                        "../counts.json", "--planner", "moec", "--from",
                        "../map.json", *model]
    yield "show", ["placement", "show", "../map.json", *model]
    yield "show-layer", ["placement", "show", "../made/conv", "--layer", "1",
                         "--json"]


def of_routes():
    routes = "../routes.safetensors"
    yield "routes-check", ["routes", "check", routes, "--source", "../src",
                           "--logits", "../logits.safetensors", "--json"]
    yield "routes-sglang", ["routes", "export", routes, "--format", "sglang"]
    yield "stats", ["stats", routes, "--ep", "2", "--json"]
    yield "stats-text", ["stats", routes, "--ep", "2", "--placement",
                         "../map.json", "--placement-after", "../other.json",
                         "--waterfill", "-v"]
    yield "stats-counts", ["stats", "../counts.json", "--ep", "2", "--json"]


def of_program():
    yield "help", ["--help"]
    yield "help-convert", ["convert", "--help"]
    yield "version", ["--version"]
    for shell in ("bash", "zsh", "fish"):
        yield "for-" + shell, ["--completion", shell]


def of_files():
    """What writes one file, or a directory, called out."""
    one, convert = ["--threads", "1"], ["convert", "../src", "out"]
    model = ["--source", "../src", "--ep", "2"]
    yield "export-file", ["placement", "export", "../map.json", "out",
                          "--format", "phy2log", "--npy", *model]
    yield "import-file", ["placement", "import", "../forms/trtllm", "out",
                          *model]
    yield "eplb-file", ["placement", "eplb", "--logical-count",
                        "../counts.json", *model, "--out", "out"]
    yield "show-page", ["placement", "show", "../map.json", *model,
                        "--logical-count", "../counts.json", "--html", "out"]
    yield "routes-import", ["routes", "import", "../routes.json", "--source",
                            "../src", "--out", "out"]
    yield "routes-npy", ["routes", "import", "../routes.npy", "--source",
                         "../src", "--out", "out", "--request", "a"]
    yield "routes-vllm", ["routes", "export", "../routes.safetensors", "out",
                          "--format", "vllm"]
    yield "routes-merge", ["routes", "merge", "../routes.safetensors",
                           "../routes2.safetensors", "--out", "out"]
    yield "stats-page", ["stats", "../routes.safetensors", "--ep", "2",
                         "--html", "out"]
    yield "stats-write", ["stats", "../routes.safetensors", "--ep", "2",
                          "--counts", "out"]
    for form in ("json", "sarif", "junit"):
        yield "to-" + form, ["check", "../src", "--ep", "2", "--policy",
                             "../limits.json", "--report", form + "=out"], 1
    yield "conv-placed", [*convert, "--ep", "2", "--placement", "../map.json",
                          *one]
    yield "conv-counts", [*convert, "--ep", "2", "--redundant", "2",
                          "--logical-count", "../counts.json", *one]
    yield "conv-parts", [*convert, "--ep", "2", "--max-part-bytes", "4KiB",
                         "--w13-order", "up-gate", *one]
    yield "conv-empty", [*convert, "--ep", "3", "--allow-empty", *one]
    yield "conv-threads", [*convert, "--ep", "2", "--threads", "3"]
    yield "unconv-store", ["unconvert", "../store", "out", *one]


def of_urls():
    """What reads a model and a conversion behind s3://."""
    model, conv, one = "s3://models/src", "s3://models/conv", ["--threads", "1"]
    yield "url-inspect", ["inspect", model, "--json"]
    yield "url-plan", ["plan", model, "--ep", "2", "--json"]
    yield "url-explain", ["explain", conv, "--layer", "0", "--expert", "1",
                          "--json"]
    yield "url-verify", ["verify", conv, *one]
    yield "url-validate", ["validate", conv, "--source", "../src", *one,
                           "--json"]
    yield "url-load", ["load", conv, "--rank", "1", "--json"]
    yield "url-diff", ["diff", conv, "../made/conv", "--json"]


def behind_urls(store, made):
    """Those, and a conversion into a bucket, in the server of scenes.py."""
    for name, place in (("src", "../src"), ("conv", "conv")):
        place = os.path.join(made, place)
        for file in os.listdir(place):
            with open(os.path.join(place, file), "rb") as f:
                store.objects["models/%s/%s" % (name, file)] = f.read()
    for name, argv in of_urls():
        yield Scene(name, argv, same=argv[0] != "load")
    yield Scene("url-out", ["unconvert", "s3://models/conv", "out",
                            "--threads", "1"], "out")
    want = {k: v for k, v in store.objects.items()
            if k.startswith("models/conv/")}

    def whole_or_none(cwd, whole):
        prefix = "models/%s/" % os.path.basename(cwd)
        there = {k: v for k, v in list(store.objects.items())
                 if k.startswith(prefix)}
        if whole or prefix + "manifest.json" in there:
            for key, value in want.items():
                key = key.replace("models/conv/", prefix)
                if "provenance" not in key and there.get(key) != value:
                    raise Failure("at the server: %s" % key)
        if whole:
            for key in there:
                del store.objects[key]

    yield Scene("url-convert", ["convert", "../src", "s3://models/{run}",
                                "--ep", "2", "--threads", "1"], same=False,
                holds=whole_or_none)


def build(scratch):
    """All of them, in the directory that scenes.build has begun."""
    tiny(os.path.join(scratch, "src2"), 3)
    put_inputs(scratch)
    made_inputs(scratch)
    with open(os.path.join(scratch, "baseline.json"), "wb") as f:
        f.write(must(["check", "src", "--ep", "2", "--json"], scratch).stdout)
    env = {"HF_HUB_CACHE": os.path.join(scratch, "hub")}
    for part in (of_models, of_placements, of_routes, of_program):
        for name, argv, *code in part():
            yield Scene(name, argv, code=code[0] if code else 0, env=env,
                        same=argv[0] != "load" and name not in READ_AGAIN)
    for name, argv, *code in of_files():
        yield Scene(name, argv, "out", code=code[0] if code else 0)
    added = []

    def added_whole(cwd, whole):
        """Failures are added to the file as well."""
        if whole:
            with open(os.path.join(cwd, "out")) as f:
                added.append(f.read())
            if not added[-1].endswith(added[0]):
                raise Failure("another report")
        elif os.path.exists(os.path.join(cwd, "out")):
            with open(os.path.join(cwd, "out")) as f:
                if not f.read().endswith("\n"):
                    raise Failure("half a report")

    yield Scene("to-markdown", ["check", "../src", "--ep", "2", "--policy",
                                "../limits.json", "--report", "markdown=out"],
                code=1, holds=added_whole)
    yield Scene("man", ["--man", "."], same=False)


def must_have_all(all_scenes):
    """Every command of --help is a scene; upload where URLs are built in."""
    argvs = [s.argv for s in all_scenes] + [["upload"]]

    def listed(words):
        text = must([*words, "--help"], ".").stdout.decode()
        lines = text.split("commands:\n")[1].split("\n\n")[0].split("\n")
        return [words + [line.split()[0]] for line in lines if line.strip()]
    commands = []
    for words in listed([]):
        commands += listed(words) if words[0] in ("placement", "routes") \
            else [words]
    missing = [w for w in commands if not any(a[:len(w)] == w for a in argvs)]
    if missing:
        raise Failure("no scene of %s" % missing)
