# SPDX-License-Identifier: Apache-2.0
"""Memory that others own, and memory of ours that others use, without a copy:
the buffer protocol, numpy's interface, torch tensors, DLPack."""
import ctypes
from typing import TYPE_CHECKING, Any, Dict, Iterable, Optional, Tuple

from . import _abi as abi
from ._lib import no_copy

if TYPE_CHECKING:
    import numpy as np

# safetensors' names: (moec_dtype, DLPack code, bits, numpy's type or None)
DTYPES = {
    "BOOL": (abi.MOEC_DTYPE_BOOL, 6, 8, "|b1"),
    "U8": (abi.MOEC_DTYPE_U8, 1, 8, "|u1"),
    "I8": (abi.MOEC_DTYPE_I8, 0, 8, "|i1"),
    "F8_E5M2": (abi.MOEC_DTYPE_F8_E5M2, 12, 8, None),
    "F8_E4M3": (abi.MOEC_DTYPE_F8_E4M3, 10, 8, None),
    "F8_E8M0": (abi.MOEC_DTYPE_F8_E8M0, 14, 8, None),
    "F8_E4M3FNUZ": (abi.MOEC_DTYPE_F8_E4M3FNUZ, 11, 8, None),
    "F8_E5M2FNUZ": (abi.MOEC_DTYPE_F8_E5M2FNUZ, 13, 8, None),
    "I16": (abi.MOEC_DTYPE_I16, 0, 16, "<i2"),
    "U16": (abi.MOEC_DTYPE_U16, 1, 16, "<u2"),
    "F16": (abi.MOEC_DTYPE_F16, 2, 16, "<f2"),
    "BF16": (abi.MOEC_DTYPE_BF16, 4, 16, None),
    "I32": (abi.MOEC_DTYPE_I32, 0, 32, "<i4"),
    "U32": (abi.MOEC_DTYPE_U32, 1, 32, "<u4"),
    "F32": (abi.MOEC_DTYPE_F32, 2, 32, "<f4"),
    "C64": (abi.MOEC_DTYPE_C64, 5, 64, "<c8"),
    "F64": (abi.MOEC_DTYPE_F64, 2, 64, "<f8"),
    "I64": (abi.MOEC_DTYPE_I64, 0, 64, "<i8"),
    "U64": (abi.MOEC_DTYPE_U64, 1, 64, "<u8"),
}
NAMES = {value[0]: name for name, value in DTYPES.items()}
_TORCH = {"bool": "BOOL", "uint8": "U8", "int8": "I8", "float8_e5m2":
          "F8_E5M2", "float8_e4m3fn": "F8_E4M3", "float8_e8m0fnu": "F8_E8M0",
          "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
          "int16": "I16", "uint16": "U16", "float16": "F16",
          "bfloat16": "BF16", "int32": "I32", "uint32": "U32",
          "float32": "F32", "complex64": "C64", "float64": "F64",
          "int64": "I64", "uint64": "U64"}


class _DLTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32),
                ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32),
                ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
                ("lanes", ctypes.c_uint16),
                ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)),
                ("byte_offset", ctypes.c_uint64)]


_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _DLManagedTensor(ctypes.Structure):
    _fields_ = [("dl_tensor", _DLTensor), ("manager_ctx", ctypes.c_void_p),
                ("deleter", _DELETER)]


_alive: Dict[int, Any] = {}  # by address: what a DLPack consumer still uses


def _drop(address: int) -> None:
    _alive.pop(address, None)


_delete = _DELETER(_drop)


# The capsule's own end, where nobody took what is inside. Typed by address:
# a capsule that is being freed must not be referenced again.
_capsule_new = ctypes.pythonapi.PyCapsule_New
_capsule_new.restype = ctypes.py_object
_capsule_new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype = ctypes.c_int
_is_valid.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]


def _dropped(capsule: int) -> None:
    if _is_valid(capsule, b"dltensor"):
        _drop(_get_pointer(capsule, b"dltensor"))


_end_capsule = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_dropped)


class Tensor:
    """A dense tensor in host memory that keeps its owner alive. Give it to
    numpy.asarray, torch.from_dlpack or anything else that speaks DLPack.
    `dtype` is safetensors' name; numpy sees dtypes it lacks (bf16, fp8) by
    `numpy(raw=True)` as unsigned integers."""

    def __init__(self, owner: Any, address: int, shape: Iterable[int],
                 dtype: str) -> None:
        self._owner = owner
        self.data_ptr, self.dtype = address, dtype
        self.shape: Tuple[int, ...] = tuple(shape)

    __reduce__ = no_copy  # the copy's address would be of memory that goes

    @property
    def nbytes(self) -> int:
        """Of all elements."""
        n = DTYPES[self.dtype][2] // 8
        for d in self.shape:
            n *= d
        return n

    def __repr__(self) -> str:
        return f"<moec.Tensor {self.dtype} {list(self.shape)}>"

    @property
    def __array_interface__(self) -> Dict[str, Any]:
        typestr = DTYPES[self.dtype][3]
        if typestr is None:
            raise AttributeError(
                f"numpy has no {self.dtype}: use numpy(raw=True) or DLPack")
        return {"version": 3, "shape": self.shape, "typestr": typestr,
                "data": (self.data_ptr, False)}

    def numpy(self, raw: bool = False) -> "np.ndarray[Any, Any]":
        """A numpy view; with `raw`, unsigned integers where numpy lacks the
        type."""
        import numpy
        if DTYPES[self.dtype][3] is not None or not raw:
            return numpy.asarray(self)
        unsigned = "U8" if DTYPES[self.dtype][2] == 8 else "U16"
        return numpy.asarray(
            Tensor(self, self.data_ptr, self.shape, unsigned))

    @property
    def buffer(self) -> "ctypes.Array[ctypes.c_ubyte]":
        """Its bytes, for whatever speaks the buffer protocol: memoryview,
        bytes, torch.frombuffer, a file's write."""
        room = (ctypes.c_ubyte * self.nbytes).from_address(self.data_ptr)
        setattr(room, "owner", self)
        return room

    def __dlpack_device__(self) -> Tuple[int, int]:
        return (1, 0)  # kDLCPU

    def __dlpack__(self, stream: Any = None,
                   max_version: Optional[Tuple[int, int]] = None,
                   dl_device: Optional[Tuple[int, int]] = None,
                   copy: Optional[bool] = None) -> Any:
        if dl_device not in (None, (1, 0)) or copy:
            raise BufferError("this memory is the host's, and not copied")
        _, code, bits, _ = DTYPES[self.dtype]
        shape = (ctypes.c_int64 * max(len(self.shape), 1))(*self.shape)
        managed = _DLManagedTensor(
            _DLTensor(self.data_ptr, 1, 0, len(self.shape), code, bits, 1,
                      shape, None, 0), None, _delete)
        address = ctypes.addressof(managed)
        _alive[address] = (managed, shape, self)
        return _capsule_new(address, b"dltensor",
                            ctypes.cast(_end_capsule, ctypes.c_void_p))


class View:
    """Where a caller's tensor lies in host memory: address, shape, strides in
    bytes, bits of an element, and safetensors' name of its type where it says
    one."""

    def __init__(self, obj: Any, writable: bool = False) -> None:
        self.owner = obj
        self.address: Any
        self.dtype: Optional[str]
        self.shape: Tuple[int, ...]
        self.strides: Tuple[int, ...]
        if isinstance(obj, Tensor):
            self.address, self.shape = obj.data_ptr, obj.shape
            self.dtype, self.bits = obj.dtype, DTYPES[obj.dtype][2]
            self.strides = self._dense()
        elif hasattr(obj, "data_ptr") and hasattr(obj, "stride"):  # torch
            if obj.device.type != "cpu":
                raise ValueError(f"the tensor is on {obj.device}, not in host "
                                 "memory")
            self.address, self.shape = obj.data_ptr(), tuple(obj.shape)
            self.bits = 8 * obj.element_size()
            self.dtype = _TORCH.get(str(obj.dtype).removeprefix("torch."))
            self.strides = tuple(s * self.bits // 8 for s in obj.stride())
        elif hasattr(obj, "__array_interface__"):
            a = obj.__array_interface__
            self.address, read_only = a["data"]
            self.shape = tuple(a["shape"])
            self.bits = 8 * int(a["typestr"][2:])
            self.dtype = next((n for n, v in DTYPES.items()
                               if v[3] == a["typestr"]), None)
            self.strides = tuple(a.get("strides") or self._dense())
            if writable and read_only:
                raise ValueError("the array is read-only")
        else:
            m = memoryview(obj)
            if writable and m.readonly:
                raise ValueError("the buffer is read-only")
            if not m.c_contiguous:
                raise ValueError("the buffer has gaps")
            self.owner = m
            self.shape, self.bits = m.shape or (), 8 * m.itemsize
            self.strides, self.dtype = m.strides or (), None
            if m.readonly:
                self.owner = bytes(m)
                self.address = ctypes.cast(ctypes.c_char_p(self.owner),
                                           ctypes.c_void_p).value
            else:
                self.address = ctypes.addressof(ctypes.c_char.from_buffer(m))

    def _dense(self) -> Tuple[int, ...]:
        strides, step = [], self.bits // 8
        for d in reversed(self.shape):
            strides.append(step)
            step *= d
        return tuple(reversed(strides))

    def holds(self, dtype: str) -> bool:
        """Can its elements be of that type? Bytes of a buffer, and unsigned
        integers of numpy's in the place of a type that it lacks, can."""
        return DTYPES[dtype][2] == self.bits and (
            self.dtype in (dtype, None) or
            DTYPES[dtype][3] is None and self.dtype in ("U8", "U16"))

    def _has_gaps(self, first: int) -> bool:
        return any(d != 1 and s != e for d, s, e in
                   list(zip(self.shape, self.strides, self._dense()))[first:])

    @property
    def is_dense(self) -> bool:
        """Are there no gaps, in the order of C?"""
        return not self._has_gaps(0)

    def row_stride(self) -> Optional[int]:
        """Elements from row to row, whatever a row is; None where rows have
        gaps inside, or overlap."""
        if not self.shape or self._has_gaps(1):
            return None
        size, dense = self.bits // 8, self._dense()[0]
        step = dense if self.shape[0] < 2 else self.strides[0]
        return step // size if step >= dense and step % size == 0 else None
