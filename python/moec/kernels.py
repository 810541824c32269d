# SPDX-License-Identifier: Apache-2.0
"""Routing kernels of <moec/kernels.h> over numpy arrays (or anything that
gives an array without a copy)."""
import contextlib
import ctypes
import threading
from typing import Any, Dict, NamedTuple, Optional, Tuple

import numpy

from . import _abi as abi
from ._lib import Handle, call, lib, text
from .memory import DTYPES, View

_SCORE = {"softmax": abi.MOEC_SCORE_SOFTMAX, "sigmoid": abi.MOEC_SCORE_SIGMOID,
          "sqrt-softplus": abi.MOEC_SCORE_SQRT_SOFTPLUS,
          "logit": abi.MOEC_SCORE_LOGIT}
_CHOICE = {"topk": abi.MOEC_CHOICE_TOPK, "hash": abi.MOEC_CHOICE_HASH,
           "sparse-mixer": abi.MOEC_CHOICE_SPARSE_MIXER}
_GROUP = {"max": abi.MOEC_GROUP_MAX, "top2": abi.MOEC_GROUP_TOP2}
_NORM = {"none": abi.MOEC_NORM_NONE, "sum": abi.MOEC_NORM_SUM,
         "floor": abi.MOEC_NORM_FLOOR, "p": abi.MOEC_NORM_P,
         "softmax": abi.MOEC_NORM_SOFTMAX, "joint": abi.MOEC_NORM_JOINT}
_FILL = {"fill-missing": abi.MOEC_EC_FILL_MISSING,
         "full-row": abi.MOEC_EC_FULL_ROW, "pad": abi.MOEC_EC_PAD,
         "balanced": abi.MOEC_EC_BALANCED}
_EC = {"off": abi.MOEC_EC_OFF, "on": abi.MOEC_EC_ON, "auto": abi.MOEC_EC_AUTO}
_SHARED = {"none": abi.MOEC_SHARED_NONE, "plain": abi.MOEC_SHARED_PLAIN,
           "sigmoid": abi.MOEC_SHARED_SIGMOID,
           "router": abi.MOEC_SHARED_ROUTER}


Array = numpy.ndarray[Any, Any]


class Kernels(Handle):
    """A back end and its threads. isa: "auto", "scalar", "avx2", "avx512".
    With more than one thread of its own it serves one call at a time: others
    wait."""
    _destroy = "moec_kernels_close"

    def __init__(self, isa: str = "auto", n_threads: int = 1) -> None:
        number = lib.moec_isa_parse(isa.encode())
        if number < 0:
            raise ValueError(f"no isa is named {isa}")
        opts = abi.moec_kernels_opts(isa=number, n_threads=n_threads)
        pointer = ctypes.c_void_p()
        call("moec_kernels_open", ctypes.byref(pointer), ctypes.byref(opts))
        super().__init__(pointer)
        self.turn: Any = contextlib.nullcontext()
        self._has_threads = lib.moec_kernels_n_threads(pointer) > 1
        if self._has_threads:
            self.turn = threading.Lock()

    @property
    def isa(self) -> str:
        """The one in use: "scalar", "avx2", "avx512"."""
        return str(text(
            lib.moec_isa_name(lib.moec_kernels_isa(self.pointer))))


class Routed(NamedTuple):
    """What a router chose."""
    ids: Array      # [T][K + S] logical ids, -1: none
    weights: Array  # [T][K + S]
    expert_choice: Optional[Dict[str, Any]]


def _array(value: Any, dtype: str, shape: Tuple[int, ...],
           what: str) -> Tuple[Optional[View], Any]:
    """A dense array of that dtype and shape, and its address; or nothing."""
    if value is None:
        return None, None
    view = View(value)
    if view.dtype != dtype or view.shape != shape or not view.is_dense:
        raise ValueError(f"{what} is {dtype} {list(shape)} without gaps, not "
                         f"{view.dtype} {list(view.shape)}")
    return view, view.address


class Router(Handle):
    """One layer's router, made ready. Arguments are moec_route_config's, by
    the names that files and `moe-convert` use."""
    _destroy = "moec_router_destroy"

    def __init__(self, n_experts: int, top_k: int, score: str = "softmax",
                 norm: str = "none", n_group: int = 0, topk_group: int = 0,
                 group_score: str = "max", choice: str = "topk",
                 rsf: float = 1.0, rsf_on_weights: bool = False,
                 n_shared: int = 0, shared_kind: str = "none",
                 expert_choice: str = "off", fill: str = "fill-missing",
                 capacity_factor: float = 0.0,
                 kernels: Optional[Kernels] = None, **more: Any) -> None:
        ec = abi.moec_ec_config(mode=_EC[expert_choice], fill=_FILL[fill],
                                capacity_ppm=round(capacity_factor * 1e6))
        config = abi.moec_route_config(
            n_experts=n_experts, top_k=top_k, score=_SCORE[score],
            choice=_CHOICE[choice], group_score=_GROUP[group_score],
            norm=_NORM[norm], n_group=n_group, topk_group=topk_group, rsf=rsf,
            rsf_on=int(rsf_on_weights), n_shared=n_shared,
            shared_kind=_SHARED[shared_kind], ec=ec, **more)
        kernels = kernels or Kernels()
        pointer = ctypes.c_void_p()
        call("moec_router_create", ctypes.byref(pointer), kernels.pointer,
             ctypes.byref(config))
        super().__init__(pointer, kernels)
        self.config, self._state = config, abi.moec_ec_state()
        # AUTO's state is of one call at a time, whatever the threads.
        self._turn: Any = threading.Lock() if ec.mode == abi.MOEC_EC_AUTO \
            else contextlib.nullcontext()
        self._kernels = kernels

    def describe(self) -> str:
        """What is in force, as JSON."""
        out = ctypes.c_void_p()
        call("moec_route_describe", self.pointer, ctypes.byref(out))
        try:
            return ctypes.string_at(out).decode()
        finally:
            _free(out)

    def route(self, logits: Any, bias: Any = None, shared_gate: Any = None,
              tokens: Any = None, hash_table: Any = None,
              forced_ids: Any = None, expert_scale: Any = None,
              n_valid: Optional[int] = None) -> Routed:
        """Choose experts and weights for logits [T][E + Z + shared logits] of
        F32, BF16 or F16."""
        cfg, view = self.config, View(logits)
        e = cfg.n_experts + cfg.n_zero
        width = e + cfg.n_shared_logits
        stride = view.row_stride()
        if stride is None or view.shape[1:] != (width,):
            raise ValueError(f"logits are [tokens][{width}], rows without "
                             "gaps that do not overlap, not "
                             f"{list(view.shape)} at {list(view.strides)}")
        n, c = view.shape[0], cfg.top_k + cfg.n_shared
        kept = [
            _array(bias, "F32", (e,), "bias"),
            _array(expert_scale, "F32", (cfg.n_experts,), "expert_scale"),
            _array(shared_gate, "F32", (n,), "shared_gate"),
            _array(hash_table, "I32",
                   (len(hash_table), cfg.top_k) if hash_table is not None
                   else (), "hash_table"),
            _array(tokens, "I32", (n,), "tokens"),
            _array(forced_ids, "I32", (n, cfg.top_k), "forced_ids")]
        given = abi.moec_route_in(
            n_tokens=n, n_valid=n if n_valid is None else n_valid,
            logits_dtype=DTYPES[view.dtype][0] if view.dtype else 0,
            logits=view.address,
            logits_stride=stride,
            bias=kept[0][1], expert_scale=kept[1][1], shared_gate=kept[2][1],
            hash_table=kept[3][1], tokens=kept[4][1], forced_ids=kept[5][1],
            vocab=len(hash_table) if hash_table is not None else 0,
            ec_state=ctypes.pointer(self._state))
        ids = numpy.empty((n, c), numpy.int32)
        weights = numpy.empty((n, c), numpy.float32)
        stats = abi.moec_ec_stats()
        out = abi.moec_route_out(ids=ids.ctypes.data,
                                 weights=weights.ctypes.data,
                                 ec=ctypes.pointer(stats))
        room, address, size = _workspace(
            lib.moec_route_workspace_bytes(self.pointer, n))
        self._kernels.pointer  # refused here, with a turn that a fork took
        with self._turn, self._kernels.turn:
            call("moec_route", self.pointer, ctypes.byref(given),
                 ctypes.byref(out), address, size)
        ec = None
        if cfg.ec.mode != abi.MOEC_EC_OFF:
            ec = {f: getattr(stats, f) for f, *_ in stats._fields_}
        del room, kept
        return Routed(ids, weights, ec)


def _workspace(n: int) -> Tuple[Any, int, int]:
    """n bytes at a multiple of 64, and what keeps them."""
    room = numpy.empty(n + 64, numpy.uint8)
    return room, room.ctypes.data + -room.ctypes.data % 64, n


def waterfill(ids: Any, n_physical: int, n_ranks: int,
              n_shared_slots: int = 1, rank: int = 0,
              by_rank: bool = False) -> Tuple[Array, Array, int]:
    """Rank that computes the shared columns of each token, from this batch's
    own loads; ids [T][K] are physical. Returns (ranks, loads, target)."""
    view = View(ids)
    if view.dtype != "I32" or len(view.shape) != 2 or not view.is_dense:
        raise ValueError("ids are I32 [tokens][columns] without gaps")
    n, k = view.shape
    topology = abi.moec_topology(n_physical=n_physical, n_ranks=n_ranks,
                                 n_local=n_physical // max(n_ranks, 1),
                                 n_shared_slots=n_shared_slots)
    mode = abi.moec_waterfill(mode=abi.MOEC_WATERFILL_STATIC,
                              by_rank=int(by_rank))
    best = numpy.empty(n, numpy.int32)
    load = numpy.empty(n_ranks, numpy.uint64)
    target = ctypes.c_uint64()
    call("moec_waterfill_ranks", ctypes.byref(topology), ctypes.byref(mode),
         rank, view.address, n, k, best.ctypes.data, load.ctypes.data,
         ctypes.byref(target))
    return best, load, target.value


def load_stats(counts: Any) -> Dict[str, Any]:
    """max, min, sum, mean, deviation and max over mean of counts."""
    given = numpy.asarray(counts)
    counts = numpy.ascontiguousarray(given, numpy.uint32)
    if (counts != given).any():
        raise ValueError("counts are whole numbers from 0 to 2^32 - 1")
    stats = lib.moec_load_stats_of(counts.ctypes.data, counts.size)
    return {f: getattr(stats, f) for f, *_ in stats._fields_}


_free = ctypes.CDLL(None).free
_free.argtypes, _free.restype = [ctypes.c_void_p], None
