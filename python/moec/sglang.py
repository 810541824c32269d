# SPDX-License-Identifier: Apache-2.0
"""SGLang's loader `moec`, switched on by a key of its own:

    python -m sglang.launch_server --model-path DIR \\
        --model-loader-extra-config '{"moec": {"verify": "xxh3"}}'

DIR is a Hugging Face checkpoint or a conversion. The placement is the
engine's own: --init-expert-location. Keys: verify (none, xxh3, sha256),
threads, ring_bytes, report. Without this package the key is refused by
SGLang's own loader: it never loads the ordinary way in silence."""
import functools
from typing import Any, Dict


def register() -> None:
    """Called once in every process of SGLang's: nothing heavy here."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    HookRegistry.register("sglang.srt.model_loader.loader.get_model_loader",
                          _get_model_loader, HookType.AROUND)


def _get_model_loader(stock: Any, load_config: Any,
                      model_config: Any = None) -> Any:
    extra = getattr(load_config, "model_loader_extra_config", None)
    if not isinstance(extra, dict) or "moec" not in extra:
        return stock(load_config, model_config)
    return _loader_class()(load_config)


@functools.lru_cache(maxsize=None)
def _loader_class() -> Any:
    import copy

    from sglang.srt.model_loader.loader import DefaultModelLoader

    class MoecModelLoader(DefaultModelLoader):  # type: ignore
        """Fills a model through libmoec, or refuses with a sentence."""

        def __init__(self, load_config: Any) -> None:
            from . import _abi as abi
            from . import serving
            from ._lib import ArgumentError
            extra = dict(load_config.model_loader_extra_config)
            self.extra = serving.options(extra.pop("moec"))
            if "placement" in self.extra:
                raise ArgumentError(
                    "moec: SGLang takes the placement itself: give "
                    "--init-expert-location", abi.MOEC_E_ARG)
            stock = copy.copy(load_config)
            stock.model_loader_extra_config = extra
            super().__init__(stock)
            self._directory = None

        def download_model(self, model_config: Any) -> None:
            from . import serving
            serving.Source(model_config.model_path)

        def _get_all_weights(self, model_config: Any, model: Any) -> Any:
            self._directory = model_config.model_path
            return iter(())  # ours come another way

        def load_weights_and_postprocess(self, model: Any, weights: Any,
                                         target_device: Any) -> None:
            load(model, self._directory, self.extra, functools.partial(
                self.load_weights_only, target_device=target_device))
            self.postprocess_weights(model, target_device)

    return MoecModelLoader


def load(model: Any, directory: Any, extra: Any,
         load_weights: Any = None) -> Dict[str, Any]:
    """Fill `model`; load_weights(model, iterator) takes what is no expert."""
    from sglang.srt.eplb.expert_location import \
        get_global_expert_location_metadata

    from . import _abi as abi
    from . import serving
    from ._lib import ArgumentError
    layers = expert_layers(model)
    if not layers:
        raise ArgumentError(
            f"moec: {type(model).__name__} has no fused experts: leave the "
            "key moec out", abi.MOEC_E_ARG)
    source = serving.Source(directory)
    world = _world(next(iter(layers.values())))
    rows = _rows(source, world, get_global_expert_location_metadata())
    experts = [serving.Experts(name, m.layer_id, _parameters(m),
                               _is_interleaved(m))
               for name, m in layers.items()]
    take = load_weights or (lambda m, weights: m.load_weights(weights))
    facts = serving.fill(source, experts, world, extra, rows,
                         lambda weights: take(model, weights))
    serving.write_report(extra.get("report"),
                         {**facts, "world": world._asdict()})
    return facts


def expert_layers(model: Any) -> Dict[str, Any]:
    """FusedMoE modules by name."""
    return {name: m for name, m in model.named_modules()
            if hasattr(m, "_num_global_routed") and hasattr(m, "w13_weight")}


def _parameters(module: Any) -> Dict[str, Any]:
    return {n: p.data for n, p in module.named_parameters(recurse=False)
            if n.startswith(("w13_", "w2_"))}


def _is_interleaved(module: Any) -> bool:
    config = getattr(module, "moe_runner_config", None)
    return bool(getattr(config, "gate_up_interleaved", False)) and \
        getattr(config, "gemm1_alpha", None) is not None


def _world(module: Any) -> Any:
    from . import serving
    return serving.World(
        ep_rank=module.moe_ep_rank, ep_size=module.moe_ep_size,
        tp_rank=module.moe_tp_rank, tp_size=module.moe_tp_size,
        n_physical=module._num_global_routed,
        shared_slots=module.num_fused_shared_experts)


def _rows(source: Any, world: Any, metadata: Any) -> Any:
    """The engine's placement by MoE layer; None where it is the trivial one."""
    trivial = [i % source.n_experts for i in range(world.n_physical)]
    if metadata is None:
        return None
    by_layer = metadata.physical_to_logical_map_cpu.tolist()
    rows = [by_layer[layer["number"]] if layer["space"] == "main" else trivial
            for layer in source.layers]
    if source.conversion is None and all(r == trivial for r in rows):
        return None
    return rows
