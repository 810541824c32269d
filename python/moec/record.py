# SPDX-License-Identifier: Apache-2.0
"""Recorded routes: <moec/record.h>. A recorder that threads append to, and the
recordings that come out."""
import ctypes
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import numpy

from . import _abi as abi
from ._lib import Handle, call, lib, path_bytes, text
from .checkpoint import Model, Path
from .memory import View


Array = numpy.ndarray[Any, Any]


class Request(NamedTuple):
    """One request of a recording."""
    id: str
    sample: int
    tokens: slice  # among the recording's
    gaps: List[Tuple[int, int]]  # positions [first, end) without rows


class Routes(Handle):
    """A recording; immutable."""
    _destroy = "moec_routes_destroy"

    def __init__(self, path: Path) -> None:
        pointer = ctypes.c_void_p()
        call("moec_routes_open", ctypes.byref(pointer), path_bytes(path))
        super().__init__(pointer)

    @classmethod
    def merge(cls, recordings: Sequence["Routes"]) -> "Routes":
        """Those of data-parallel ranks, by key."""
        several = (ctypes.c_void_p * len(recordings))(
            *(r.pointer for r in recordings))
        return cls._create("moec_routes_merge", several, len(recordings))

    def save(self, path: Path, replace: bool = False) -> None:
        """Into a file; over another one with `replace` alone."""
        call("moec_routes_save", self.pointer, path_bytes(path), int(replace))

    @property
    def shape(self) -> Tuple[int, int, int]:
        """(tokens, MoE layers, columns)."""
        s = lib.moec_routes_shape_get(self.pointer).contents
        return (lib.moec_routes_n_tokens(self.pointer), s.n_layers, s.top_k)

    @property
    def n_experts(self) -> int:
        """Logical experts."""
        return int(
            lib.moec_routes_shape_get(self.pointer).contents.n_experts)

    @property
    def requests(self) -> List[Request]:
        """In the order of their tokens."""
        out = []
        for i in range(lib.moec_routes_n_requests(self.pointer)):
            r = lib.moec_routes_get_request(self.pointer, i)
            out.append(Request(
                text(r.id), r.sample,
                slice(r.first_token, r.first_token + r.n_tokens),
                [(r.gaps[g].first, r.gaps[g].end) for g in range(r.n_gaps)]))
        return out

    @property
    def positions(self) -> Array:
        """Of each token in its request."""
        n = self.shape[0]
        data = ctypes.cast(lib.moec_routes_positions(self.pointer),
                           ctypes.POINTER(ctypes.c_uint32))
        return numpy.ctypeslib.as_array(data, (n,)).copy() if n else \
            numpy.empty(0, numpy.uint32)

    def ids(self, layer: int) -> Array:
        """Logical ids [tokens][columns] of one MoE layer, -1: none."""
        n, layers, k = self.shape
        if not 0 <= layer < layers:
            raise IndexError(layer)
        out = numpy.empty((n, k), numpy.int32)
        lib.moec_routes_ids(self.pointer, 0, n, layer, out.ctypes.data)
        return out

    def counts(self) -> Array:
        """How often each expert was chosen: [layers][experts]. What
        Placement.eplb takes."""
        out = numpy.empty((self.shape[1], self.n_experts), numpy.uint64)
        lib.moec_routes_counts(self.pointer, out.ctypes.data)
        return out


class Recorder(Handle):
    """Rows of routed ids, from any thread."""
    _destroy = "moec_recorder_destroy"

    def __init__(self, model: Optional[Model] = None, n_experts: int = 0,
                 top_k: int = 0, layers: Sequence[int] = (),
                 n_decoder: int = 0, max_bytes: int = 0) -> None:
        """Of a model, or of sizes and the numbers of its MoE layers."""
        hexes = ctypes.create_string_buffer(65)
        shape = abi.moec_routes_shape()
        if model is not None:
            call("moec_routes_shape_of", ctypes.byref(shape), model.pointer,
                 hexes)
        else:
            keys = (abi.moec_layer_key * len(layers))(
                *(abi.moec_layer_key(space=abi.MOEC_SPACE_MAIN, number=n)
                  for n in layers))
            shape = abi.moec_routes_shape(
                n_experts=n_experts, top_k=top_k, n_layers=len(layers),
                n_decoder=n_decoder,
                keys=ctypes.cast(keys, ctypes.POINTER(abi.moec_layer_key)))
        opts = abi.moec_recorder_opts(shape=shape, max_bytes=max_bytes)
        pointer = ctypes.c_void_p()
        try:
            call("moec_recorder_start", ctypes.byref(pointer),
                 ctypes.byref(opts))
        finally:
            if model is not None:
                lib.moec_routes_shape_release(ctypes.byref(shape))
        super().__init__(pointer)
        self._columns = shape.top_k

    def request(self, name: str, sample: int = 0) -> int:
        """The handle of a request, for append."""
        out = ctypes.c_uint64()
        call("moec_recorder_request", self.pointer, name.encode(), sample,
             ctypes.byref(out))
        return out.value

    def append(self, layer: int, requests: Any, positions: Any,
               ids: Any) -> None:
        """Row t of ids [rows][columns, shared ones may follow] belongs to
        request requests[t] (0: padding) at positions[t]."""
        view = View(ids)
        stride = view.row_stride()
        if view.dtype != "I32" or stride is None or \
                len(view.shape) != 2 or view.shape[1] < self._columns:
            raise ValueError(f"ids are I32 [rows][{self._columns} or more]")
        n = view.shape[0]
        keys = numpy.zeros(n, numpy.dtype([("request", "<u8"),
                                           ("position", "<u4"),
                                           ("reserved", "<u4")]))
        keys["request"], keys["position"] = requests, positions
        call("moec_recorder_append", self.pointer, layer,
             ctypes.cast(keys.ctypes.data,
                         ctypes.POINTER(abi.moec_route_key)),
             view.address, stride, n)

    def gap(self, request: int, first: int, end: int) -> None:
        """Positions that never pass through the model."""
        call("moec_recorder_gap", self.pointer, request, first, end)

    def retract(self, request: int, start: int) -> None:
        """Forget its rows from position `start` on."""
        call("moec_recorder_retract", self.pointer, request, start)

    def take(self, request: int) -> Routes:
        """One request, whole; it leaves the recorder."""
        return self._routes("moec_recorder_take", request)

    def stop(self) -> Routes:
        """All that is left, whole."""
        return self._routes("moec_recorder_stop")

    def _routes(self, function: str, *arguments: Any) -> Routes:
        pointer = ctypes.c_void_p()
        call(function, self.pointer, *arguments, ctypes.byref(pointer))
        out = Routes.__new__(Routes)
        Handle.__init__(out, pointer)
        return out
