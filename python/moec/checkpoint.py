# SPDX-License-Identifier: Apache-2.0
"""Checkpoints, models, placements, plans: the objects of <moec/loader.h>,
<moec/mapping.h> and <moec/validate.h>."""
import ctypes
import os
from typing import (Any, Callable, Dict, Iterator, List, NamedTuple, Optional,
                    Sequence, Tuple, Union)

from . import _abi as abi
from ._lib import (FileError, Handle, call, failure, guarded, lib, path_bytes,
                   text, waiting, whole)
from .memory import NAMES, View

Path = Union[str, "os.PathLike[str]"]
Progress = Callable[[int, int], Any]  # done, total


class TensorInfo(NamedTuple):
    """A tensor of a checkpoint, as its header says."""
    name: str
    dtype: str
    shape: Tuple[int, ...]
    file: str
    offset: int  # from the begin of the file
    nbytes: int


class Finding(NamedTuple):
    """What a check says: severity "note", "warning" or "error"."""
    severity: str
    rule: Optional[str]
    text: str


def _fields(struct: Any) -> Dict[str, Any]:
    out = {}
    for name, *_ in struct._fields_:
        value = getattr(struct, name)
        if name != "struct_bytes":
            out[name] = text(value) if isinstance(value, bytes) else value
    return out


class Checkpoint(Handle):
    """An opened checkpoint: a directory of safetensors, one file, a Hugging
    Face snapshot, or org/name[@revision] below `hf_cache`."""
    _destroy = "moec_ckpt_close"

    def __init__(self, path: Path, hf_cache: Optional[Path] = None,
                 n_threads: int = 0) -> None:
        opts = abi.moec_ckpt_opts(
            n_threads=n_threads,
            hf_cache=None if hf_cache is None else path_bytes(hf_cache))
        pointer = ctypes.c_void_p()
        call("moec_ckpt_open", ctypes.byref(pointer), path_bytes(path),
             ctypes.byref(opts))
        super().__init__(pointer)

    @property
    def directory(self) -> str:
        """Where its files are."""
        return os.fsdecode(lib.moec_ckpt_dir(self.pointer))

    def __len__(self) -> int:
        return int(lib.moec_ckpt_n_tensors(self.pointer))

    def tensor(self, index: int) -> TensorInfo:
        """By number, from 0 to len()."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        t = lib.moec_ckpt_tensor(self.pointer, index).contents
        shape = ctypes.cast(t.shape, ctypes.POINTER(ctypes.c_uint64))
        file = lib.moec_ckpt_file(self.pointer, t.file).contents
        return TensorInfo(text(t.name), text(lib.moec_dtype_name(t.dtype)),
                          tuple(shape[:t.rank]), text(file.name), t.off,
                          t.bytes)

    def find(self, name: str) -> int:
        """The number of a tensor; KeyError where there is none."""
        i = lib.moec_ckpt_find(self.pointer, name.encode())
        if i == ctypes.c_size_t(-1).value:
            raise KeyError(name)
        return int(i)

    def __getitem__(self, name: str) -> TensorInfo:
        return self.tensor(self.find(name))

    def __iter__(self) -> Iterator[TensorInfo]:
        return (self.tensor(i) for i in range(len(self)))

    def read(self, name: str, into: Any = None) -> Any:
        """Bytes of a tensor; `into` a writable buffer of its size."""
        i = self.find(name)
        n = self.tensor(i).nbytes
        out = bytearray(n) if into is None else into
        view = View(out, writable=True)
        total = view.bits // 8
        for d in view.shape:
            total *= d
        if total != n or not view.is_dense:
            raise ValueError(f"{name} has {n} bytes, the buffer {total}")
        call("moec_ckpt_read", self.pointer, i, 0, view.address, n)
        return out

    @property
    def notes(self) -> List[str]:
        """What is odd and not wrong."""
        return [text(lib.moec_ckpt_note(self.pointer, i).contents.text)
                for i in range(lib.moec_ckpt_n_notes(self.pointer))]


class Families(Handle):
    """The built-in model families, and descriptions added to them."""
    _destroy = "moec_families_destroy"

    def __init__(self) -> None:
        pointer = ctypes.c_void_p()
        call("moec_families_create", ctypes.byref(pointer))
        super().__init__(pointer)

    def add(self, description: str, name: str = "family") -> None:
        """A family in JSON, as `moe-convert --family` takes."""
        data = description.encode()
        call("moec_families_add", self.pointer, name.encode(), data,
             len(data))

    def __iter__(self) -> Iterator[str]:
        return (text(lib.moec_families_name(self.pointer, i))
                for i in range(lib.moec_families_count(self.pointer)))


class Model(Handle):
    """What the config and the headers of a checkpoint say of its experts."""
    _destroy: Optional[str] = "moec_model_destroy"

    def __init__(self, checkpoint: Union[Checkpoint, Path],
                 families: Optional[Families] = None) -> None:
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint(checkpoint)
        families = families or Families()
        pointer = ctypes.c_void_p()
        call("moec_model_open", ctypes.byref(pointer), checkpoint.pointer,
             families.pointer)
        super().__init__(pointer, checkpoint)
        self.checkpoint = checkpoint

    @property
    def facts(self) -> Dict[str, Any]:
        """moec_facts: sizes, family, what a layer computes."""
        f = lib.moec_model_facts(self.pointer).contents
        out = _fields(f)
        out["expert_dtype"] = NAMES.get(f.expert_dtype)
        out["shared_kind"] = text(lib.moec_shared_kind_name(f.shared_kind))
        return out

    @property
    def n_layers(self) -> int:
        """MoE layers: main ones ascending, then MTP ones."""
        return int(lib.moec_model_n_layers(self.pointer))

    def layer(self, i: int) -> Dict[str, Any]:
        """Which decoder or MTP layer the i-th MoE layer is."""
        if not 0 <= i < self.n_layers:
            raise IndexError(i)
        layer = lib.moec_model_layer(self.pointer, i).contents
        return {"space": ("main", "mtp")[layer.key.space],
                "number": layer.key.number,
                "source_number": layer.source_number,
                "experts_prefix": text(layer.experts_prefix)}

    def role(self, name: str) -> str:
        """What a tensor is: "common", "routed", "shared", "router" or
        "shared_gate"."""
        use = lib.moec_model_use(self.pointer, self.checkpoint.find(name))
        return ("common", "routed", "shared", "router",
                "shared_gate")[use.role]


class Placement(Handle):
    """Which logical expert stands in which physical slot, layer by layer."""
    _destroy: Optional[str] = "moec_placement_destroy"

    def __init__(self, rows: Sequence[Sequence[int]],
                 n_experts: int) -> None:
        n_layers, n_physical = len(rows), len(rows[0]) if len(rows) else 0
        if any(len(r) != n_physical for r in rows):
            raise ValueError("rows of a placement are of one length")
        flat = whole((v for r in rows for v in r), ctypes.c_int32)
        pointer = ctypes.c_void_p()
        call("moec_placement_from_rows", ctypes.byref(pointer), n_layers,
             n_experts, n_physical, flat)
        super().__init__(pointer)

    @classmethod
    def trivial(cls, n_layers: int, n_experts: int,
                n_redundant: int = 0) -> "Placement":
        """Slot i has expert i mod E, in every layer."""
        return cls._create("moec_placement_trivial", n_layers, n_experts,
                           n_redundant)

    @classmethod
    def parse(cls, model: Model, data: Union[str, bytes, bytearray],
              name: str = "placement") -> "Placement":
        """Any of the formats that `moe-convert placement` knows."""
        data = data.encode() if isinstance(data, str) else bytes(data)
        return cls._create("moec_placement_parse", model.pointer,
                           name.encode(), data, len(data))

    @classmethod
    def read(cls, model: Model, path: Path) -> "Placement":
        """parse() of a file."""
        try:
            with open(path, "rb") as f:
                data = f.read()
        except OSError as e:
            said = FileError(f"placement {os.fspath(path)}: {e.strerror}",
                             abi.MOEC_E_IO)
            said.errno = e.errno
            raise said from e
        return cls.parse(model, data, os.fspath(path))

    @classmethod
    def eplb(cls, loads: Any, n_ranks: int, n_redundant: int = 0,
             n_groups: int = 1, n_nodes: int = 1, accum: str = "f64",
             ties: str = "introsort") -> "Placement":
        """DeepSeek's balancer over loads[layers][experts], bit for bit."""
        import numpy
        loads = numpy.ascontiguousarray(loads, numpy.float32)
        if loads.ndim != 2:
            raise ValueError("loads are [layers][experts]")
        opts = abi.moec_eplb_opts(
            n_redundant=n_redundant, n_ranks=n_ranks, n_groups=n_groups,
            n_nodes=n_nodes,
            accum={"f64": abi.MOEC_EPLB_F64, "f32": abi.MOEC_EPLB_F32}[accum],
            ties={"introsort": abi.MOEC_EPLB_INTROSORT,
                  "stable": abi.MOEC_EPLB_STABLE}[ties])
        return cls._create("moec_eplb", None, ctypes.byref(opts),
                           loads.ctypes.data, *loads.shape)

    @property
    def n_experts(self) -> int:
        """Logical experts."""
        return int(lib.moec_placement_n_experts(self.pointer))

    @property
    def n_physical(self) -> int:
        """Slots, over all ranks."""
        return int(lib.moec_placement_n_physical(self.pointer))

    @property
    def is_trivial(self) -> bool:
        """Is it what trivial() makes?"""
        return bool(lib.moec_placement_is_trivial(self.pointer))

    @property
    def rows(self) -> List[List[int]]:
        """The expert of each slot, by MoE layer."""
        out = []
        for i in range(lib.moec_placement_n_layers(self.pointer)):
            row = ctypes.cast(lib.moec_placement_row(self.pointer, i),
                              ctypes.POINTER(ctypes.c_int32))
            out.append(row[:self.n_physical])
        return out


_SHARED = {"auto": abi.MOEC_SHARED_SLOTS_AUTO,
           "per-rank": abi.MOEC_SHARED_SLOTS_PER_RANK,
           "global": abi.MOEC_SHARED_SLOTS_GLOBAL,
           "off": abi.MOEC_SHARED_SLOTS_OFF}
_ORDER = {"gate-up": abi.MOEC_W13_GATE_UP, "up-gate": abi.MOEC_W13_UP_GATE}


class _Planned:
    """What plans and conversions share: slot tensors by layer."""
    _plan: Any  # moec_plan *

    @property
    def topology(self) -> Dict[str, int]:
        """moec_topology: ranks, slots, slots of a rank."""
        return _fields(lib.moec_plan_topology(self._plan))

    @property
    def n_layers(self) -> int:
        """Planned layers."""
        return int(lib.moec_plan_n_layers(self._plan))

    def slot_tensors(self, layer: int) -> List[Dict[str, Any]]:
        """Name, dtype, shape (rows first) and bytes of a row, of each stacked
        tensor of a planned layer; the same on every rank."""
        if not 0 <= layer < self.n_layers:
            raise IndexError(layer)
        out = []
        for t in range(lib.moec_plan_n_slot_tensors(self._plan, layer)):
            s = lib.moec_plan_slot_tensor(self._plan, layer, t).contents
            out.append({"name": text(s.name), "dtype": NAMES[s.dtype],
                        "shape": tuple(s.shape[:s.rank]),
                        "slot_bytes": s.slot_bytes, "is_w2": bool(s.is_w2),
                        "all_slots": bool(s.all_slots)})
        return out

    def units(self, layer: int, rank: int) -> List[Optional[int]]:
        """Logical expert, or E + shared part, in each local row; None: empty."""
        if not 0 <= layer < self.n_layers:
            raise IndexError(layer)
        topology = self.topology
        if not 0 <= rank < topology["n_ranks"]:
            raise IndexError(rank)
        n = topology["n_local"] + lib.moec_plan_shared_rows(self._plan)
        units = [lib.moec_plan_unit(self._plan, layer, rank,
                                    abi.moec_local_row(v=row))
                 for row in range(n)]
        return [None if u == 0xffffffff else u for u in units]

    def layer_key(self, layer: int) -> Tuple[str, int]:
        """Space and number of a planned layer: ("main", 3)."""
        model = lib.moec_plan_model(self._plan)
        i = lib.moec_plan_model_layer(self._plan, layer)
        key = lib.moec_model_layer(model, i).contents.key
        return ("main", "mtp")[key.space], key.number


class Plan(Handle, _Planned):
    """Where every expert of every rank goes: pure, no data file is opened."""
    _destroy = "moec_plan_destroy"

    def __init__(self, model: Model, n_ranks: int = 1, n_redundant: int = 0,
                 placement: Optional[Placement] = None, shared: str = "auto",
                 w13_order: str = "gate-up", mtp: bool = True,
                 allow_empty: bool = False) -> None:
        opts = abi.moec_plan_opts(
            n_ranks=n_ranks, n_redundant=n_redundant, shared=_SHARED[shared],
            w13_order=_ORDER[w13_order], no_mtp=not mtp,
            allow_empty=allow_empty,
            placement=placement.pointer if placement else None)
        pointer = ctypes.c_void_p()
        call("moec_plan_create", ctypes.byref(pointer), model.pointer,
             ctypes.byref(opts))
        super().__init__(pointer, model)
        self.model = model

    @property
    def _plan(self) -> Any:
        return self.pointer

    @property
    def notes(self) -> List[str]:
        """What a user may want to know of the plan."""
        return [text(lib.moec_plan_note(self.pointer, i).contents.text)
                for i in range(lib.moec_plan_n_notes(self.pointer))]


class Conversion(Handle, _Planned):
    """A converted checkpoint, opened: what moe-convert wrote."""
    _destroy = "moec_conversion_close"

    def __init__(self, directory: Path,
                 families: Optional[Families] = None) -> None:
        pointer = ctypes.c_void_p()
        call("moec_conversion_open", ctypes.byref(pointer),
             path_bytes(directory), families.pointer if families else None)
        super().__init__(pointer)
        self.directory = os.fspath(directory)

    @property
    def _plan(self) -> Any:
        return lib.moec_layout_plan(lib.moec_conversion_layout(self.pointer))

    @property
    def facts(self) -> Dict[str, Any]:
        """Those of the model that was converted."""
        f = lib.moec_model_facts(lib.moec_plan_model(self._plan)).contents
        return _fields(f)


def is_converted(directory: Path) -> bool:
    """Is the directory a conversion, be it a damaged one?"""
    if os.path.exists(os.path.join(os.fspath(directory), "slots.bin")):
        return True
    try:
        with open(os.path.join(os.fspath(directory), "manifest.json"),
                  "rb") as f:
            return f.read(64).startswith(b'{\n  "schema": "moec.manifest/')
    except OSError:
        return False


def _findings(report: Any) -> List[Finding]:
    out = []
    for i in range(lib.moec_report_n_findings(report)):
        f = lib.moec_report_finding(report, i).contents
        rule = lib.moec_rule_describe(f.rule).contents.id if f.rule else None
        out.append(Finding(("note", "warning", "error")[f.severity],
                           text(rule), text(f.message)))
    return out


def _watched(function: str, directory: Path, opts: Any,
             progress: Optional[Progress]) -> ctypes.c_void_p:
    """What a long function makes, which tells its progress and can be
    stopped: by the progress, by an exception in it, by a signal."""
    out = ctypes.c_void_p()
    raised: List[BaseException] = []
    stop: List[bool] = []

    def tell(_: Any, done: int, total: int) -> int:
        return int(bool(stop or progress and progress(done, total)))

    opts.progress = abi.moec_progress_fn(guarded(tell, raised, 1))
    err = abi.moec_error()
    status = waiting(
        lambda: getattr(lib, function)(
            ctypes.byref(out), path_bytes(directory), ctypes.byref(opts),
            ctypes.byref(err)),
        lambda: stop.append(True))
    if raised:
        raise raised.pop(0)
    if status != abi.MOEC_OK:
        raise failure(status, err)
    return out


def verify(directory: Path, source: Optional[Checkpoint] = None,
           level: str = "digests", n_threads: int = 0,
           progress: Optional[Progress] = None) -> List[Finding]:
    """Check a conversion's every byte; what is wrong with it, or nothing. The
    progress is called with (done, total); what is true stops it."""
    opts = abi.moec_verify_opts(
        n_threads=n_threads, source=source.pointer if source else None,
        level={"headers": abi.MOEC_LEVEL_HEADERS,
               "digests": abi.MOEC_LEVEL_DIGESTS}[level])
    report = _watched("moec_verify", directory, opts, progress)
    try:
        return _findings(report)
    finally:
        lib.moec_report_destroy(report)


def validate(directory: Path, source: Checkpoint, n_tokens: int = 0,
             n_threads: int = 0, seed: int = 0,
             progress: Optional[Progress] = None) -> List[Finding]:
    """Run the converted experts against the source's, layer by layer. The
    progress is called with (done, total); what is true stops it."""
    opts = abi.moec_validate_opts(
        n_threads=n_threads, source=source.pointer, n_tokens=n_tokens,
        seed=seed)
    validation = _watched("moec_validate", directory, opts, progress)
    try:
        return _findings(lib.moec_validation_report(validation))
    finally:
        lib.moec_validation_destroy(validation)
