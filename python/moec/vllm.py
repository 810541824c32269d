# SPDX-License-Identifier: Apache-2.0
"""vLLM's load format `moec`:

    vllm serve DIR --load-format moec \\
        --model-loader-extra-config '{"placement": "placement.json"}'

DIR is a Hugging Face checkpoint or a conversion. Expert parameters are filled
in place before vLLM processes them; all else goes through the model's own
load_weights. Keys: placement (a file; needs EPLB), verify (none, xxh3,
sha256), threads, ring_bytes, report (a file that gets a line of JSON)."""
from typing import Any, Dict


def register() -> None:
    """Called once in every process of vLLM's: nothing heavy here."""
    from vllm.model_executor.model_loader import register_model_loader
    register_model_loader("moec")(_loader_class())


def _loader_class() -> Any:
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    class MoecModelLoader(BaseModelLoader):  # type: ignore
        """Fills a model through libmoec, or refuses with a sentence."""

        def __init__(self, load_config: Any) -> None:
            super().__init__(load_config)
            from . import serving
            self.extra = serving.options(
                load_config.model_loader_extra_config)
            self.eplb = None  # not known before load_model

        def download_model(self, model_config: Any) -> None:
            from . import serving
            serving.Source(model_config.model)  # is it there, is it ours?

        def load_model(self, vllm_config: Any, model_config: Any,
                       prefix: Any = "") -> Any:
            self.eplb = vllm_config.parallel_config.enable_eplb
            return super().load_model(vllm_config=vllm_config,
                                      model_config=model_config,
                                      prefix=prefix)

        def load_weights(self, model: Any, model_config: Any) -> None:
            load(model, model_config, self.extra, self.eplb)

    return MoecModelLoader


def load(model: Any, model_config: Any, extra: Any, eplb: Any) -> None:
    """Fill `model`; `eplb`: vLLM's load balancer is on."""
    from . import _abi as abi
    from . import serving
    from ._lib import ArgumentError
    source = serving.Source(model_config.model)
    layers = expert_layers(model)
    if not layers:
        raise ArgumentError(
            f"moec: {type(model).__name__} has no fused experts: use the "
            "engine's own load format", abi.MOEC_E_ARG)
    world = _world(next(iter(layers.values())))
    rows = source.rows(extra["placement"]) if extra.get("placement") else None
    if rows is None and source.conversion is not None:
        rows = source.placement_rows()
    trivial = [i % source.n_experts for i in range(world.n_physical)]
    if rows is not None and all(r == trivial for r in rows):
        rows = None
    if rows is not None and not eplb:
        raise ArgumentError(
            "moec: this placement is not vLLM's initial one, and vLLM takes "
            "another one only with --enable-eplb: without it, it would send "
            "tokens to the wrong experts", abi.MOEC_E_ARG)
    experts = [serving.Experts(name, _number(name), _parameters(m),
                               _is_interleaved(m))
               for name, m in layers.items()]
    facts = serving.fill(source, experts, world, extra, rows,
                         model.load_weights)
    serving.prove_complete(model, facts["rest"] or (), facts["filled"])
    if rows is not None:
        publish([r for r, layer in zip(rows, source.layers)
                 if layer["space"] == "main"])
    serving.write_report(extra.get("report"), {
        **facts, "world": world._asdict(),
        "common": len(facts["rest"] or ())})


def expert_layers(model: Any) -> Dict[str, Any]:
    """RoutedExperts modules by name, in the model's order."""
    return {name: m for name, m in model.named_modules()
            if hasattr(m, "expert_map_manager") and
            any(hasattr(m, w) for w in ("w13_weight", "w13_weight_packed"))}


def _number(name: Any) -> int:
    """Of "model.layers.3.mlp.experts.routed_experts": 3."""
    parts = name.split(".")
    return int(parts[parts.index("layers") + 1])


def _parameters(module: Any) -> Dict[str, Any]:
    return {n: p.data for n, p in module.named_parameters(recurse=False)
            if n.startswith(("w13_", "w2_"))}


def _is_interleaved(module: Any) -> bool:
    """gpt-oss keeps gate and up of w13 in turn: its activation says so."""
    activation = getattr(module, "activation", None) or getattr(
        getattr(module, "moe_config", None), "activation", None)
    return getattr(activation, "value", activation) == "swigluoai"


def _world(module: Any) -> Any:
    from . import serving
    m = module.expert_map_manager
    parallel = module.moe_config.moe_parallel_config
    return serving.World(
        ep_rank=m.ep_rank, ep_size=m.ep_size, tp_rank=parallel.tp_rank,
        tp_size=parallel.tp_size, n_physical=module.global_num_experts,
        shared_slots=m.num_fused_shared_experts)


def publish(rows: Any) -> None:
    """Tell vLLM's EPLB state, which is built after loading, where the experts
    are. The state takes the rows once; a second model is left alone."""
    import torch
    from vllm.distributed.eplb.eplb_state import EplbState

    stock = EplbState.add_model

    def add_model(self: Any, model: Any, model_config: Any, *a: Any,
                  **kw: Any) -> None:
        stock(self, model, model_config, *a, **kw)
        state = self.model_states[model_config.compute_hash()]
        have = state.physical_to_logical_map
        want = torch.tensor(rows, dtype=have.dtype)
        if want.shape != have.shape:
            from . import _abi as abi
            from ._lib import MappingError
            raise MappingError(
                f"moec: the placement is {list(want.shape)}, vLLM has "
                f"{list(have.shape)} (MoE layers, slots)",
                abi.MOEC_E_MAPPING)
        self.update_mapping(model_config, want)
        EplbState.add_model = stock

    EplbState.add_model = add_model
