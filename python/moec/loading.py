# SPDX-License-Identifier: Apache-2.0
"""One rank's tensors, loaded: <moec/load.h>. `Job` is the C interface;
`load` is the short way for one rank into memory of its own."""
import ctypes
import mmap
from typing import Any, Callable, Dict, List, Optional, Union

from . import _abi as abi
from ._lib import (Handle, OutOfMemoryError, call, failure, guarded, lib,
                   waiting, whole)
from .checkpoint import Conversion, Plan, _Planned
from .memory import NAMES, Tensor, View

NO_LAYER = 0xffffffff
VERIFY = {None: abi.MOEC_LOAD_VERIFY_DEFAULT,
           "none": abi.MOEC_LOAD_VERIFY_NONE,
           "xxh3": abi.MOEC_LOAD_VERIFY_XXH3,
           "sha256": abi.MOEC_LOAD_VERIFY_SHA256}
# The types of the callbacks are those of the fields that take them.
_FIELDS = {name: kind for name, kind, *_ in abi.moec_job_opts._fields_}
_MEMORY, _READY = _FIELDS["memory"], _FIELDS["ready"]
_PROGRESS = _FIELDS["progress"]


def _room(want: Any, arenas: List[Any]) -> int:
    """The address of memory for a job, kept by `arenas`."""
    try:
        room = mmap.mmap(-1, want.bytes + want.alignment,
                         mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as e:
        raise OutOfMemoryError(
            f"no memory for {want.bytes} bytes of tensors: {e.strerror}",
            abi.MOEC_E_NOMEM) from e
    try:
        room.madvise(mmap.MADV_HUGEPAGE)  # or it is touched 4 KiB at a time
    except OSError:
        pass  # advice
    arenas.append((ctypes.c_ubyte * len(room)).from_buffer(room))
    address = ctypes.addressof(arenas[-1])
    return address + int(-address % want.alignment)


class _Borrowed(_Planned):
    def __init__(self, plan: Any) -> None:
        self._plan = plan


class Job(Handle):
    """One execution of a plan for one rank. Place tensors, start, wait; what
    was not placed goes into one arena that the job's tensors keep alive.

    ready(layer) is called from a thread of the job's once all bytes of a
    planned layer are in place and checked, ready(None) for the source tensors;
    an exception in it ends the job. progress(done, total) is called now and
    then while wait() waits; what it returns as true cancels."""
    _destroy = "moec_job_destroy"

    def __init__(self, source: Union[Plan, Conversion], rank: int,
                 verify: Optional[str] = None,
                 layers: Optional[List[int]] = None, tp_rank: int = 0,
                 tp_size: int = 1, n_threads: int = 0, ring_bytes: int = 0,
                 memory_bytes: int = 0, common_last: bool = False,
                 ready: Optional[Callable[[Optional[int]], Any]] = None,
                 progress: Optional[Callable[[int, int], Any]] = None,
                 **more: Any) -> None:
        # The callbacks hold on to these, not to the job: a job that is
        # dropped goes at once, and its memory with the last tensor.
        arenas: List[Any] = []
        raised: List[BaseException] = []
        self._arenas, self._raised = arenas, raised
        self._keep: Dict[Any, View] = {}

        def on_memory(_: Any, want: Any, out: Any, err: Any) -> int:
            want = ctypes.cast(want, ctypes.POINTER(
                abi.moec_memory_request)).contents
            ctypes.cast(out, ctypes.POINTER(ctypes.c_void_p))[0] = \
                _room(want, arenas)
            return abi.MOEC_OK

        chosen = None if layers is None else whole(layers, ctypes.c_uint32)
        opts = abi.moec_job_opts(
            verify=VERIFY[verify], tp_rank=tp_rank, tp_size=tp_size,
            n_threads=n_threads, ring_bytes=ring_bytes,
            memory_bytes=memory_bytes, common_last=common_last,
            layers=ctypes.cast(chosen, ctypes.c_void_p) if chosen else None,
            n_layers=0 if layers is None else len(layers),
            memory=_MEMORY(guarded(on_memory, raised, abi.MOEC_E_NOMEM)),
            **more)
        if ready:
            def on_ready(_: Any, layer: int, ticket: Any, err: Any) -> int:
                ready(None if layer == NO_LAYER else layer)
                return abi.MOEC_OK
            opts.ready = _READY(
                guarded(on_ready, raised, abi.MOEC_E_INTERNAL))
        if progress:
            opts.progress = _PROGRESS(guarded(
                lambda _, done, total: int(bool(progress(done, total))),
                raised, 1))
        # Its callbacks live as long as the job.
        self._opts: Optional[abi.moec_job_opts] = opts
        pointer = ctypes.c_void_p()
        conversion = isinstance(source, Conversion)
        call("moec_job_create", ctypes.byref(pointer),
             None if conversion else source.pointer,
             source.pointer if conversion else None, rank, ctypes.byref(opts))
        super().__init__(pointer, source)
        self.plan = _Borrowed(lib.moec_job_plan(pointer))
        self._ckpt = lib.moec_model_ckpt(
            lib.moec_plan_model(lib.moec_job_plan(pointer)))

    def close(self) -> None:
        """End it, and let go of the caller's tensors and functions."""
        super().close()
        self._opts = None
        self._keep = {}

    # ------------------------------------------------------------- places
    def slot_tensor(self, layer: int, t: int) -> Dict[str, Any]:
        """Slot tensor t of a planned layer as this job loads it: cut by tp."""
        s = abi.moec_slot_tensor()
        call("moec_job_slot_tensor", self.pointer, layer, t, ctypes.byref(s))
        return {"name": s.name.decode(), "dtype": NAMES[s.dtype],
                "shape": tuple(s.shape[:s.rank]), "slot_bytes": s.slot_bytes,
                "is_w2": bool(s.is_w2), "all_slots": bool(s.all_slots)}

    def slot_shape(self, layer: int, t: int) -> Dict[str, int]:
        """moec_slot_shape: what this rank's part of slot tensor t is."""
        s = abi.moec_slot_shape()
        call("moec_job_slot_shape", self.pointer, layer, t, ctypes.byref(s))
        return {n: getattr(s, n) for n, *_ in s._fields_}

    def place_slots(self, layer: int, t: int, tensor: Any) -> None:
        """Load slot tensor t into `tensor` (torch, numpy, a buffer): rows
        without gaps inside, any distance between them; all of them, or the
        routed experts' alone. None: leave it out."""
        dst = abi.moec_slot_dst()
        if tensor is not None:
            view, want = View(tensor, writable=True), \
                self.slot_tensor(layer, t)
            if view.shape[1:] != want["shape"][1:] or not view.shape or \
                    view.shape[0] > want["shape"][0] or \
                    not view.holds(want["dtype"]):
                raise ValueError(
                    f"{want['name']} is {want['dtype']} "
                    f"{list(want['shape'])}, the tensor {view.dtype} "
                    f"{list(view.shape)}")
            stride = view.row_stride()
            if stride is None:
                raise ValueError(f"{want['name']}: slots of the tensor have "
                                 "gaps inside, or overlap")
            dst = abi.moec_slot_dst(data=view.address,
                                    slot_stride=stride * (view.bits // 8),
                                    n_slots=view.shape[0])
            self._keep[layer, t] = view
        call("moec_job_place_slots", self.pointer, layer, t,
             ctypes.byref(dst))

    def place_tensor(self, name: str, tensor: Any = None) -> None:
        """Load a source tensor too, a common or a shared expert's: into
        `tensor`, or into the arena."""
        i = lib.moec_ckpt_find(self._ckpt, name.encode())
        if i == ctypes.c_size_t(-1).value:
            raise KeyError(name)
        dst = None
        if tensor is not None:
            view = View(tensor, writable=True)
            have = lib.moec_ckpt_tensor(self._ckpt, i).contents
            total = view.bits // 8
            for d in view.shape:
                total *= d
            if not view.is_dense or total != have.bytes:
                raise ValueError(f"{name} has {have.bytes} bytes, the tensor "
                                 f"{total}, or gaps")
            dst = ctypes.byref(abi.moec_tensor_dst(data=view.address))
            self._keep[name] = view
        call("moec_job_place_tensor", self.pointer, i, dst)

    # ---------------------------------------------------------------- run
    def start(self) -> None:
        """Begin to read. Nothing can be placed any more."""
        err, pointer = abi.moec_error(), self.pointer
        # Its callbacks must not be where a signal is handled.
        status = waiting(
            lambda: lib.moec_job_start(pointer, ctypes.byref(err)),
            self.cancel)
        self._check(status, err)

    def wait(self) -> None:
        """The result of the whole. Other threads of Python run meanwhile, and
        Ctrl-C ends it."""
        err, pointer = abi.moec_error(), self.pointer
        status = waiting(lambda: lib.moec_job_wait(pointer, ctypes.byref(err)),
                         self.cancel)
        self._check(status, err)

    def _check(self, status: int, err: abi.moec_error) -> None:
        if self._raised:  # popped: its traceback leads to the list
            raise self._raised.pop(0)
        if status != abi.MOEC_OK:
            raise failure(status, err)

    def cancel(self) -> None:
        """wait() then raises CancelledError. From any thread."""
        lib.moec_job_cancel(self.pointer)

    def stats(self) -> Dict[str, Any]:
        """moec_job_stats: bytes, seconds, layers ready. From any thread."""
        s = abi.moec_job_stats()
        lib.moec_job_poll(self.pointer, ctypes.byref(s))
        return {n: getattr(s, n) for n, *_ in s._fields_
                if n not in ("struct_bytes", "reserved", "state")}

    def slots(self, layer: int, t: int) -> Optional[Tensor]:
        """A slot tensor of the arena, once started; None where the caller
        placed it, or it is left out."""
        data = lib.moec_job_slots_data(self.pointer, layer, t)
        if not data or (layer, t) in self._keep:
            return None
        want = self.slot_tensor(layer, t)
        return Tensor(self._arenas, data, want["shape"], want["dtype"])

    def tensor(self, name: str) -> Optional[Tensor]:
        """A source tensor of the arena, once started; None where the caller
        placed it, or did not ask for it."""
        i = lib.moec_ckpt_find(self._ckpt, name.encode())
        data = lib.moec_job_tensor_data(self.pointer, i) \
            if i != ctypes.c_size_t(-1).value else None
        if not data or name in self._keep:
            return None
        t = lib.moec_ckpt_tensor(self._ckpt, i).contents
        shape = ctypes.cast(t.shape, ctypes.POINTER(ctypes.c_uint64))
        return Tensor(self._arenas, data, shape[:t.rank], NAMES[t.dtype])


def load(source: Union[Plan, Conversion], rank: int, common: bool = False,
         **options: Any) -> Dict[str, Tensor]:
    """Load one rank: its stacked tensors by name, and with `common` every
    source tensor that the plan puts in no slot and does not leave out: shared
    experts too where they have no slots. Options are Job's."""
    with Job(source, rank, **options) as job:
        wanted = []
        if common:
            for i in range(lib.moec_ckpt_n_tensors(job._ckpt)):
                if lib.moec_plan_fate(job.plan._plan, i) == \
                        abi.MOEC_FATE_COMMON:
                    name = lib.moec_ckpt_tensor(job._ckpt, i).contents.name
                    wanted.append(name.decode())
                    job.place_tensor(wanted[-1])
        job.start()
        job.wait()
        out: Dict[str, Any] = {name: job.tensor(name) for name in wanted}
        layers = options.get("layers")
        for layer in range(job.plan.n_layers) if layers is None else layers:
            for t, s in enumerate(job.plan.slot_tensors(layer)):
                out[s["name"]] = job.slots(layer, t)
        return out
