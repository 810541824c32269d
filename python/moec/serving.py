# SPDX-License-Identifier: Apache-2.0
"""What the engines' plug-ins share: a checkpoint into a model whose fused
expert layers are torch parameters, filled in place, everything else through
the engine's own code; proof that nothing was left out."""
import ctypes
import os
import time
from typing import (Any, Callable, Dict, Iterable, Iterator, List, NamedTuple,
                    Optional, Tuple, Union)

import torch

from . import _abi as abi
from ._lib import ArgumentError, MappingError, lib
from .checkpoint import (Checkpoint, Conversion, Model, Placement, Plan,
                         is_converted)
from .loading import VERIFY, Job

KEYS = {"placement", "verify", "threads", "ring_bytes", "report"}
# Memory for tensors that cannot be filled in place, at a time.
STAGING_BYTES = 4 << 30

_TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32,
          "F64": torch.float64, "U8": torch.uint8, "I8": torch.int8,
          "I32": torch.int32, "I64": torch.int64, "I16": torch.int16,
          "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
          "F8_E5M2": torch.float8_e5m2}
for _name, _attribute in (("U32", "uint32"), ("U16", "uint16"),
                          ("F8_E8M0", "float8_e8m0fnu")):
    if hasattr(torch, _attribute):
        _TORCH[_name] = getattr(torch, _attribute)


class Experts(NamedTuple):
    """One fused layer of the engine's model."""
    module: str  # its name, for messages
    number: int  # of the decoder layer
    parameters: Dict[str, torch.Tensor]  # "w13_weight": [local, ...]
    interleaved: bool  # rows of w13: gate 0, up 0, gate 1, ...


class World(NamedTuple):
    """Where this rank is, as the engine says."""
    ep_rank: int
    ep_size: int
    tp_rank: int
    tp_size: int
    n_physical: int
    shared_slots: int  # fused shared slots of each rank


class Source:
    """A checkpoint of either form, opened, and what the engine may ask."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.conversion = Conversion(directory) \
            if is_converted(directory) else None
        if self.conversion is None:
            self.model: Optional[Model] = (m := Model(Checkpoint(directory)))
            facts = m.facts
            self.layers = [m.layer(i) for i in range(m.n_layers)]
        else:
            self.model = None
            facts = self.conversion.facts
            self.layers = [
                {"space": s, "number": n} for s, n in map(
                    self.conversion.layer_key,
                    range(self.conversion.n_layers))]
        self.n_experts = facts["n_experts"]

    def rows(self, path: str) -> List[List[int]]:
        """A placement's rows, one for each MoE layer."""
        model = self.model
        if self.conversion is not None:
            model = _BorrowedModel(lib.moec_plan_model(self.conversion._plan))
        assert model is not None  # of either form
        return Placement.read(model, path).rows

    def planned(self, world: World, rows: Optional[List[List[int]]],
                ) -> Union[Plan, Conversion]:
        """A plan for that world, or the conversion if it is one for it."""
        if world.ep_size < 1 or world.n_physical % world.ep_size:
            raise MappingError(
                f"{world.n_physical} slots do not divide by {world.ep_size} "
                "ranks: the engine would give ranks unequal shares; choose "
                "redundant experts that make it even", abi.MOEC_E_MAPPING,
                "MOE-P06")
        if self.model is not None:
            placement = Placement(rows, self.n_experts) if rows else None
            return Plan(
                self.model, n_ranks=world.ep_size,
                n_redundant=world.n_physical - self.n_experts,
                placement=placement,
                shared="per-rank" if world.shared_slots else "off")
        assert self.conversion is not None  # the other form
        t = self.conversion.topology
        made = (t["n_ranks"], t["n_physical"])
        if made != (world.ep_size, world.n_physical):
            raise MappingError(
                f"{self.directory} was converted for {made[0]} ranks and "
                f"{made[1]} slots; the engine runs {world.ep_size} ranks and "
                f"{world.n_physical} slots. Convert it for that, or serve the "
                "original", abi.MOEC_E_MAPPING)
        if world.shared_slots and t["n_shared_slots"] != world.shared_slots:
            raise MappingError(
                f"{self.directory} has {t['n_shared_slots']} shared slots a "
                f"rank; the engine has {world.shared_slots}",
                abi.MOEC_E_MAPPING)
        if rows is not None and rows != self.placement_rows():
            raise MappingError(
                f"{self.directory} was converted with another placement: run "
                "`moe-convert place` first, or serve the original",
                abi.MOEC_E_MAPPING)
        return self.conversion

    def placement_rows(self) -> List[List[int]]:
        """What the conversion was made with."""
        assert self.conversion is not None  # asked of one alone
        p = lib.moec_plan_placement(self.conversion._plan)
        return _BorrowedPlacement(p).rows


class _BorrowedModel(Model):
    _destroy = None

    def __init__(self, pointer: Any) -> None:
        self._pointer = pointer


class _BorrowedPlacement(Placement):
    _destroy = None

    def __init__(self, pointer: Any) -> None:
        self._pointer = pointer


def options(extra: Optional[Dict[str, Any]]) -> Dict[str, Any]:
    """The engine's dictionary of ours, refused where it has other keys."""
    if not isinstance(extra or {}, dict):
        raise ArgumentError("moec: model_loader_extra_config is no object of "
                            f"JSON, but {extra!r}", abi.MOEC_E_ARG)
    extra = dict(extra or {})
    unknown = sorted(set(extra) - KEYS)
    if unknown:
        raise ArgumentError(
            f"moec: model_loader_extra_config has {', '.join(unknown)}; it "
            f"knows {', '.join(sorted(KEYS))}", abi.MOEC_E_ARG)
    for key, value in extra.items():
        if key == "verify":
            good, what = value in VERIFY, "none, xxh3 or sha256"
        elif key in ("threads", "ring_bytes"):
            good, what = type(value) is int and value >= 0, "a whole number"
        else:
            good, what = isinstance(value, str), "the path of a file"
        if not good:
            raise ArgumentError(
                f"moec: {key} in model_loader_extra_config is {value!r}; it "
                f"must be {what}", abi.MOEC_E_ARG)
    return extra


def _suffix(name: str) -> str:
    return name.rsplit(".", 1)[1]


def _in_huge_pages(p: torch.Tensor) -> None:
    """A parameter that nobody has touched yet is filled a page fault at a
    time: make them large ones. Advice; it may be refused."""
    begin, end = p.data_ptr(), p.data_ptr() + p.numel() * p.element_size()
    begin, end = begin + -begin % 4096, end - end % 4096
    if end > begin:
        _libc.madvise(begin, end - begin, 14)  # MADV_HUGEPAGE


_libc = ctypes.CDLL(None)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def _interleave(to: torch.Tensor, loaded: torch.Tensor) -> None:
    """Rows gate..., up... of each slot into gate 0, up 0, gate 1, ..."""
    half = loaded.shape[1] // 2
    to[:, 0::2].copy_(loaded[:, :half])
    to[:, 1::2].copy_(loaded[:, half:])


class _Fill:
    """One job over some layers: which tensors are filled in place, and which
    through staging once their layer is ready."""

    def __init__(self, source: Union[Plan, Conversion], world: World,
                 extra: Dict[str, Any], layers: List[int],
                 targets: Dict[int, Experts]) -> None:
        self.later: Dict[Optional[int], List[Tuple[torch.Tensor, torch.Tensor,
                                         bool]]] = {}
        self.filled: List[str] = []
        self.n_local = world.n_physical // world.ep_size
        self.shared_rows = world.shared_slots > 0
        self.job = Job(source, world.ep_rank, verify=extra.get("verify"),
                       n_threads=extra.get("threads", 0),
                       ring_bytes=extra.get("ring_bytes", 0),
                       tp_rank=world.tp_rank, tp_size=world.tp_size,
                       layers=layers, ready=self.ready)
        for layer in layers:
            self.place(layer, targets[layer])

    def place(self, layer: int, experts: Experts) -> None:
        job, had = self.job, set()
        for t in range(len(job.plan.slot_tensors(layer))):
            want = job.slot_tensor(layer, t)
            suffix = _suffix(want["name"])
            p = experts.parameters.get(suffix)
            if p is None:
                raise MappingError(
                    f"{experts.module} has no parameter {suffix}: the "
                    f"checkpoint's {want['name']} ({want['dtype']} "
                    f"{list(want['shape'])}) has no place in the engine's "
                    f"model, which has {', '.join(experts.parameters)}",
                    abi.MOEC_E_MAPPING)
            had.add(suffix)
            shape, dtype = want["shape"], _TORCH.get(want["dtype"])
            if not self.shared_rows and not want["all_slots"]:  # they are last
                shape = (self.n_local, *shape[1:])
            if tuple(p.shape) != shape or dtype is None:
                raise MappingError(
                    f"{experts.module}.{suffix} is {p.dtype} "
                    f"{list(p.shape)}; the checkpoint's slots on this rank "
                    f"are {want['dtype']} {list(shape)}", abi.MOEC_E_MAPPING)
            interleave = experts.interleaved and not want["is_w2"]
            if p.dtype == dtype and p.device.type == "cpu" and \
                    not interleave and p.is_contiguous():
                _in_huge_pages(p)
                job.place_slots(layer, t, p)
            elif p.dtype == dtype or (p.dtype.is_floating_point and
                                      dtype.is_floating_point and
                                      p.dtype.itemsize > 1 and
                                      dtype.itemsize > 1):
                staging = torch.empty(shape, dtype=dtype, device="cpu")
                job.place_slots(layer, t, staging)
                self.later.setdefault(layer, []).append(
                    (p, staging, interleave))
            else:
                raise MappingError(
                    f"{experts.module}.{suffix} is {p.dtype}, the "
                    f"checkpoint's {want['dtype']}: the engine's quantisation "
                    "is not the checkpoint's", abi.MOEC_E_MAPPING)
            self.filled.append(f"{experts.module}.{suffix}")

    def ready(self, layer: Optional[int]) -> None:
        with torch.no_grad():
            for p, staging, interleave in self.later.pop(layer, ()):
                if interleave:
                    _interleave(p, staging)
                else:
                    p.copy_(staging)


def _groups(targets: Dict[int, Experts]) -> Iterator[List[int]]:
    """Layers, as many at a time as staging memory allows."""
    group: List[int] = []
    room = 0
    for layer, experts in sorted(targets.items()):
        n = sum(p.numel() * p.element_size()
                for p in experts.parameters.values())
        if group and room + n > STAGING_BYTES:
            yield group
            group, room = [], 0
        group.append(layer)
        if any(p.device.type != "cpu" for p in experts.parameters.values()):
            room += n
    if group:
        yield group


def fill(source: Source, experts: Iterable[Experts], world: World,
         extra: Dict[str, Any], rows: Optional[List[List[int]]],
         rest: Callable[[Iterator[Tuple[str, torch.Tensor]]], Any],
         ) -> Dict[str, Any]:
    """Fill every expert layer in place; hand all other tensors, by their
    names in the checkpoint, to `rest`. Returns figures, the names of the
    parameters filled, and what `rest` returned."""
    began = time.perf_counter()
    planned = source.planned(world, rows)
    numbers = {layer["number"]: i for i, layer in enumerate(source.layers)
               if layer["space"] == "main"}
    targets: Dict[int, Experts] = {}
    for e in experts:
        if e.number not in numbers:
            raise MappingError(
                f"{e.module}: the checkpoint has no experts in decoder layer "
                f"{e.number}", abi.MOEC_E_MAPPING)
        targets[numbers[e.number]] = e
    missing = sorted(set(numbers.values()) - set(targets))
    if missing:
        raise MappingError(
            f"the engine's model has no fused experts for "
            f"{source.layers[missing[0]]} and {len(missing) - 1} more of the "
            "checkpoint's MoE layers: it would run without them",
            abi.MOEC_E_MAPPING)
    out: Dict[str, Any] = {"filled": [], "bytes_needed": 0, "bytes_read": 0,
                           "bytes_verified": 0, "seconds_experts": 0.0}
    answer = None
    for first, layers in enumerate(_groups(targets)):
        part = _Fill(planned, world, extra, layers, targets)
        with part.job as job:
            names = _place_rest(job, world) if first == 0 else []
            job.start()
            job.wait()
            if first == 0:
                answer = rest((n, torch.from_dlpack(job.tensor(n)))
                              for n in names)
            stats = job.stats()
        for key in ("bytes_needed", "bytes_read", "bytes_verified"):
            out[key] += stats[key]
        out["seconds_experts"] += stats["seconds"]
        out["filled"] += part.filled
    out["rest"] = answer
    out["seconds"] = time.perf_counter() - began
    return out


def _place_rest(job: Job, world: World) -> List[str]:
    """Ask for every source tensor that goes into no slot of this model."""
    model = lib.moec_plan_model(job.plan._plan)
    skip = {abi.MOEC_ROLE_ROUTED}
    if world.shared_slots:
        skip.add(abi.MOEC_ROLE_SHARED)
    names = []
    for i in range(lib.moec_ckpt_n_tensors(job._ckpt)):
        use = lib.moec_model_use(model, i)
        if use.role not in skip and not use.is_mtp:
            names.append(
                lib.moec_ckpt_tensor(job._ckpt, i).contents.name.decode())
            job.place_tensor(names[-1])
    return names


def prove_complete(model: torch.nn.Module, loaded: Iterable[str],
                   filled: Iterable[str]) -> None:
    """Every parameter was written by somebody, or the start ends here."""
    left = {n for n, _ in model.named_parameters()} - set(loaded) - \
        set(filled)
    if left:
        names = sorted(left)
        raise MappingError(
            f"{len(left)} parameters of the engine's model were not in the "
            f"checkpoint: {', '.join(names[:5])}"
            f"{', ...' if len(left) > 5 else ''}", abi.MOEC_E_MAPPING)


def write_report(path: Optional[str], facts: Dict[str, Any]) -> None:
    """Append one line of JSON: for a log, for tests."""
    if not path:
        return
    import json
    with open(path, "a") as f:
        f.write(json.dumps({"pid": os.getpid(), **{
            k: v for k, v in facts.items() if k != "rest"}}) + "\n")
