# SPDX-License-Identifier: Apache-2.0
"""The library: where it is found, the types of its functions, and its errors
as exceptions with the library's own sentence."""
import ctypes
import ctypes.util
import operator
import os
import threading
from typing import (Any, Callable, Iterable, List, NoReturn, Optional, Type,
                    TypeVar, Union)

from . import _abi as abi

_T = TypeVar("_T")
_H = TypeVar("_H", bound="Handle")


class MoecError(Exception):
    """What the library refuses or fails at. `status` is a moec_status, `rule`
    the id of the broken rule ("MOE-H07") or None, `offset` the byte in the
    file or None."""

    def __init__(self, text: str, status: int = abi.MOEC_E_INTERNAL,
                 rule: Optional[str] = None,
                 offset: Optional[int] = None) -> None:
        super().__init__(text)
        self.status, self.rule, self.offset = status, rule, offset


class ArgumentError(MoecError, ValueError):
    """A call that does not fit: what the caller gave."""


class OutOfMemoryError(MoecError, MemoryError):
    """No memory, or less than the cap that was set."""


class FileError(MoecError, OSError):
    """The system refused: errno is that of the failed call."""


class FormatError(MoecError, ValueError):
    """A file is not what its format says."""


class MappingError(MoecError, ValueError):
    """Experts and slots do not fit together: a wrong world or placement."""


class MixedError(MoecError, ValueError):
    """Experts of one layer are of different kinds."""


class IntegrityError(MoecError):
    """Bytes are not those that were written."""


class UnsupportedError(MoecError, NotImplementedError):
    """Nothing here does that; never silently something else."""


class NoDeviceError(MoecError, RuntimeError):
    """No plug-in, driver or device; the text says which."""


class LockedError(MoecError, OSError):
    """Another process works there."""


class CancelledError(MoecError):
    """Somebody asked to stop."""


class DurabilityError(MoecError, OSError):
    """It is done, but the last fsync failed: errno says why."""


_ERRORS = {
    abi.MOEC_E_ARG: ArgumentError, abi.MOEC_E_NOMEM: OutOfMemoryError,
    abi.MOEC_E_IO: FileError, abi.MOEC_E_FORMAT: FormatError,
    abi.MOEC_E_MAPPING: MappingError, abi.MOEC_E_MIXED: MixedError,
    abi.MOEC_E_INTEGRITY: IntegrityError,
    abi.MOEC_E_UNSUPPORTED: UnsupportedError,
    abi.MOEC_E_NO_DEVICE: NoDeviceError, abi.MOEC_E_LOCKED: LockedError,
    abi.MOEC_E_CANCELLED: CancelledError,
    abi.MOEC_E_DURABILITY: DurabilityError,
}


def _checked(ctype: Any) -> Any:
    """The type of a whole number that is an argument. What it does not hold
    is refused: ctypes would cut it, and say nothing."""
    class Whole:
        @staticmethod
        def from_param(value: Any) -> Any:
            if isinstance(value, bool):
                raise TypeError("a truth value where a number stands")
            out = ctype(operator.index(value))
            if out.value != value:
                raise ValueError(f"{value} cannot stand here")
            return out
    return Whole


_CHECKED: Any = {t: _checked(t) for t in (ctypes.c_uint32, ctypes.c_uint64,
                                     ctypes.c_int32, ctypes.c_int64)}


def whole(values: Iterable[int], ctype: Any) -> Any:
    """A C array of whole numbers, checked likewise."""
    check = _CHECKED[ctype].from_param
    kept = [check(v).value for v in values]
    return (ctype * max(len(kept), 1))(*kept)


def _open() -> ctypes.CDLL:
    """MOEC_LIBRARY, else the one inside the package, else the system's."""
    here = os.path.join(os.path.dirname(__file__), "libmoec.so")
    name = os.environ.get("MOEC_LIBRARY") or (
        here if os.path.exists(here) else
        ctypes.util.find_library("moec") or "libmoec.so.0")
    try:
        library = ctypes.CDLL(name)
    except OSError as e:
        raise ImportError(
            f"libmoec cannot be loaded ({e}): install the package, or name "
            "the library in MOEC_LIBRARY") from e
    for function, (result, arguments) in abi.FUNCTIONS.items():
        try:
            f = getattr(library, function)
        except AttributeError as e:
            raise ImportError(
                f"{name} has no {function}: it is not the library that this "
                "package was made with") from e
        f.restype = result
        f.argtypes = [_CHECKED.get(a, a) for a in arguments]
    return library


lib = _open()


def failure(status: int, err: abi.moec_error) -> MoecError:
    """The exception for a status and the error that came with it."""
    text = err.text.decode("utf-8", "replace")
    rule = None
    if err.rule:
        rule = lib.moec_rule_describe(err.rule).contents.id.decode()
    e = _ERRORS.get(status, MoecError)(
        text, status, rule, err.file_off if err.has_off else None)
    if isinstance(e, OSError) and err.os_errno:
        e.errno = err.os_errno
    return e


def call(function: str, *arguments: Any) -> None:
    """Call a function whose last parameter is the error; raise on failure."""
    err = abi.moec_error()
    status = getattr(lib, function)(*arguments, ctypes.byref(err))
    if status != abi.MOEC_OK:
        raise failure(status, err)


def guarded(f: Callable[..., int], raised: List[BaseException],
            failed: int) -> Callable[..., int]:
    """f for C to call: into C no exception goes. It is kept in `raised`, and
    C gets `failed`."""
    def run(*arguments: Any) -> int:
        try:
            return f(*arguments)
        except BaseException as e:
            raised.append(e)
            return failed
    return run


def waiting(work: Callable[[], _T], stop: Callable[[], Any]) -> _T:
    """work(), a long call into C that raises nothing, with signals handled:
    Python does that in the main thread alone, and only outside of C. stop()
    makes work end."""
    if threading.current_thread() is not threading.main_thread():
        return work()
    begun, done = threading.Event(), threading.Event()
    out: List[_T] = []
    caught: List[BaseException] = []

    def run() -> None:
        begun.set()
        try:
            if not caught:
                out.append(work())
        finally:
            done.set()

    try:
        threading.Thread(target=run).start()
        done.wait()  # Thread.join, interrupted, takes the thread for ended
    except BaseException as e:
        caught.append(e)
        while begun.is_set() and not done.is_set():
            try:
                stop()
                done.wait()
            except KeyboardInterrupt:
                pass  # it is ending already
        caught.clear()  # e's traceback leads to it
        raise
    return out[0]


def no_copy(self: Any) -> NoReturn:
    """__reduce__ of what cannot be copied, and so not pickled."""
    raise TypeError(f"a moec {type(self).__name__} is memory of this process: "
                    "it cannot be copied or pickled; send the path, and open "
                    "it there")


class Handle:
    """An object of the library, destroyed with this one. What it borrows is
    kept alive by holding on to it."""
    _destroy: Optional[str] = None
    _has_threads = False  # which a fork does not carry over
    __reduce__ = no_copy

    def __init__(self, pointer: Any, *borrowed: Any) -> None:
        self._pointer: Any = pointer
        self._borrowed = borrowed
        self._pid = os.getpid()

    @classmethod
    def _create(cls: Type[_H], function: str, *arguments: Any) -> _H:
        pointer = ctypes.c_void_p()
        call(function, ctypes.byref(pointer), *arguments)
        self = cls.__new__(cls)
        Handle.__init__(self, pointer)
        return self

    @property
    def pointer(self) -> Any:
        """Of the C object; refused once it is closed."""
        if not self._pointer:
            raise ArgumentError(f"this {type(self).__name__} is closed",
                                abi.MOEC_E_ARG)
        if self._has_threads and self._pid != os.getpid():
            raise ArgumentError(
                f"this {type(self).__name__} was made by process {self._pid} "
                "before a fork: its threads are not here", abi.MOEC_E_ARG)
        return self._pointer

    def close(self) -> None:
        """Destroy it now; nothing that borrowed it may be used any more."""
        pointer, self._pointer = getattr(self, "_pointer", None), None
        if self._has_threads and pointer and self._pid != os.getpid():
            return  # it would wait for them
        if pointer and self._destroy:
            getattr(lib, self._destroy)(pointer)

    def __enter__(self: _H) -> _H:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except (AttributeError, TypeError):  # the interpreter is ending
            pass


def text(value: Optional[bytes]) -> Any:
    return None if value is None else value.decode("utf-8", "replace")


def path_bytes(path: Union[str, "os.PathLike[str]"]) -> bytes:
    return os.fsencode(os.fspath(path))
