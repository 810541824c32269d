# SPDX-License-Identifier: Apache-2.0
"""SGLang's real expert layers, weight loader and placement parser, on the CPU.

usage: sglang_runs.py FIXTURES WORK MOE_CONVERT

For each case every rank's FusedMoE layers are filled twice: tensor by tensor
through SGLang's own weight_loader, and by moec.sglang.load; w13 and w2 must be
equal byte for byte, the shared slot included. Then our exports go through
SGLang's parser, and the plug-in's hook is applied. Prints a table; exits 1
where one differs.
"""
import json
import os
import subprocess
import sys
import warnings

warnings.filterwarnings("ignore")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
import transformers  # noqa: E402
from sglang.srt.eplb import expert_location as el  # noqa: E402
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE  # noqa: E402
from sglang.srt.models.registry import ModelRegistry  # noqa: E402
from sglang.srt.runtime_context import get_context, get_parallel  # noqa: E402

import moec  # noqa: E402
import moec.sglang  # noqa: E402
from moec._lib import MoecError  # noqa: E402

FIXTURES, WORK, PROGRAM = sys.argv[1:4]
SHARDS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


class Toy(torch.nn.Module):
    """Expert layers under the names of a model, and what else came."""

    def __init__(self, layers):
        super().__init__()
        self.rest = []
        for number, layer in layers.items():
            self.add_module(f"model.layers.{number}.mlp.experts".replace(
                ".", "_"), layer)

    def load_weights(self, weights):
        self.rest = [name for name, _ in weights]


def build(cfg, inter, numbers, world, dtype):
    return {n: FusedMoE(
        num_experts=world["n"] + world["redundant"] + world["shared"],
        hidden_size=cfg.hidden_size, intermediate_size=inter, layer_id=n,
        top_k=cfg.num_experts_per_tok + world["shared"],
        num_fused_shared_experts=world["shared"], params_dtype=dtype,
        prefix=f"model.layers.{n}.mlp.experts") for n in numbers}


def theirs(layers, ckpt, n_experts, shared):
    for number, layer in layers.items():
        for e in [*range(n_experts), *(["shared"] if shared else [])]:
            where = f"model.layers.{number}.mlp." + (
                "shared_experts." if e == "shared" else f"experts.{e}.")
            for name, shard in SHARDS.items():
                t = ckpt[where + name + ".weight"]
                data = torch.frombuffer(ckpt.read(t.name),
                                        dtype=torch.bfloat16).reshape(t.shape)
                param = layer.w2_weight if shard == "w2" else layer.w13_weight
                param.weight_loader(
                    param, data,
                    f"experts.{'w2' if shard == 'w2' else 'w13'}_weight",
                    shard_id=shard,
                    expert_id=n_experts if e == "shared" else e)


def case(name, ep, redundant, shared, placement, converted):
    path = os.path.join(FIXTURES, name)
    ckpt = moec.Checkpoint(path)
    model = moec.Model(ckpt)
    facts = model.facts
    n = facts["n_experts"]
    numbers = [model.layer(i)["source_number"] for i in range(model.n_layers)
               if model.layer(i)["space"] == "main"]
    cfg = transformers.AutoConfig.from_pretrained(path)
    cls, _ = ModelRegistry.resolve_model_cls(cfg.architectures)
    where = cls.get_model_config_for_expert_location(cfg)
    el.ModelConfigForExpertLocation.from_model_config = staticmethod(
        lambda _: where)
    world = {"n": n, "redundant": redundant, "shared": shared}
    directory = path
    if converted:
        directory = os.path.join(WORK, f"sg-{name}-{ep}-{redundant}-"
                                 f"{shared}-{placement is not None}")
        options = ["--ep", str(ep), "--redundant", str(redundant)]
        if not shared:
            options += ["--shared-slots", "none"]
        if placement:
            options = ["--ep", str(ep), "--placement", placement]
        if not os.path.isdir(directory):
            subprocess.run([PROGRAM, "convert", path, directory, "--quiet",
                            *options], check=True, stderr=subprocess.DEVNULL)
    fields = {"device": "cpu", "tp_size": ep, "ep_size": ep,
              "ep_num_redundant_experts": redundant,
              "init_expert_location": placement or "trivial"}
    rest = 0
    with get_context().override_server_args(**fields):
        for rank in range(ep):
            with get_parallel().override(tp_rank=rank, moe_ep_rank=rank,
                                         moe_tp_rank=0):
                meta = el.compute_initial_expert_location_metadata(
                    None, moe_ep_rank=rank)
                el.set_global_expert_location_metadata(meta,
                                                       allow_overwrite=True)
                inter = facts["inter"]
                want = build(cfg, inter, numbers, world, torch.bfloat16)
                theirs(want, ckpt, n, shared)
                got = build(cfg, inter, numbers, world, torch.bfloat16)
                toy = Toy(got)
                moec.sglang.load(toy, directory, {})
                rest = len(toy.rest)
                for number in numbers:
                    for p in ("w13_weight", "w2_weight"):
                        a, b = (getattr(x[number], p).data.view(torch.uint8)
                                for x in (want, got))
                        if not torch.equal(a, b):
                            return False, f"rank {rank} layer {number} {p}"
    return True, (f"{ep} ranks, {len(numbers)} layers equal, {rest} other "
                  "tensors")


def parser():
    """Our export of every format goes through SGLang's parser."""
    path = os.path.join(FIXTURES, "qwen3_moe")
    rows = os.path.join(WORK, "vllm-rows.json")
    with open(rows, "w") as f:
        json.dump([[0, 1, 2, 3, 4, 0, 5, 6, 7, 8, 9, 5]] * 3, f)
    out = os.path.join(WORK, "sglang.json")
    subprocess.run([PROGRAM, "placement", "export", rows, out, "--source",
                    path, "--format", "sglang", "--force"], check=True,
                   stdout=subprocess.DEVNULL)
    cfg = transformers.AutoConfig.from_pretrained(path)
    cls, _ = ModelRegistry.resolve_model_cls(cfg.architectures)
    where = cls.get_model_config_for_expert_location(cfg)
    el.ModelConfigForExpertLocation.from_model_config = staticmethod(
        lambda _: where)
    with get_context().override_server_args(
            device="cpu", tp_size=2, ep_size=2, ep_num_redundant_experts=2,
            init_expert_location=out):
        meta = el.compute_initial_expert_location_metadata(None, moe_ep_rank=0)
    rows = meta.physical_to_logical_map_cpu.tolist()
    return rows == [[0, 1, 2, 3, 4, 0, 5, 6, 7, 8, 9, 5]] * 3, "3 layers"


def hook():
    """Applied by SGLang's registry; switched by its key alone."""
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.model_loader import loader
    from sglang.srt.plugins.hook_registry import HookRegistry
    moec.sglang.register()
    HookRegistry.apply_hooks()
    plain = loader.get_model_loader(LoadConfig())
    ours = loader.get_model_loader(LoadConfig(
        model_loader_extra_config={"moec": {"verify": "none"}}))
    names = type(plain).__name__, type(ours).__name__
    try:
        loader.get_model_loader(LoadConfig(
            model_loader_extra_config={"moec": {"verfy": "none"}}))
        return False, "an unknown key passes"
    except MoecError as e:
        said = str(e)
    return names == ("DefaultModelLoader", "MoecModelLoader") and \
        "verfy" in said, f"{names}; refuses: {said}"


def main():
    os.makedirs(WORK, exist_ok=True)
    own = os.path.join(WORK, "own.json")
    with open(own, "w") as f:
        json.dump({"physical_to_logical_map": [
            [0, 1, 2, 3, 4, 0, 5, 6, 7, 8, 9, 5],
            [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 3, 3],
            [1, 1, 0, 2, 4, 3, 9, 7, 8, 6, 5, 2]]}, f)
    ok = True
    print("| what | from | | |\n|---|---|---|---|", flush=True)
    for name, ep, redundant, shared, placement in (
            ("qwen3_moe", 1, 0, 0, None), ("qwen3_moe", 2, 2, 0, own),
            ("deepseek_v3", 2, 2, 1, None), ("deepseek_v3", 4, 0, 1, None),
            ("glm4_moe", 2, 0, 0, None)):
        for converted in (False, True):
            try:
                good, text = case(name, ep, redundant, shared, placement,
                                  converted)
            except Exception as e:
                good, text = False, f"{type(e).__name__}: {e}"[-200:]
            ok &= good
            print(f"| {name} EP {ep} R {redundant} S {shared}"
                  f"{' own placement' if placement else ''} | "
                  f"{'converted' if converted else 'HF'} | "
                  f"{'ok' if good else 'BAD'} | {text} |", flush=True)
    for what, f in (("placement parser", parser), ("plug-in hook", hook)):
        try:
            good, text = f()
        except Exception as e:
            good, text = False, f"{type(e).__name__}: {e}"[-200:]
        ok &= good
        print(f"| {what} | | {'ok' if good else 'BAD'} | {text} |", flush=True)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
