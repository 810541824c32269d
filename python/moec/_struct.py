# SPDX-License-Identifier: Apache-2.0
"""The base of every C struct: starts as its _INIT macro says."""
import ctypes
from typing import TYPE_CHECKING, Any, Dict


class Struct(ctypes.Structure):
    _initial_: Dict[str, Any] = {}

    if TYPE_CHECKING:  # a checker does not read _fields_
        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, **values: Any) -> None:
        super().__init__()
        names = {f[0] for f in self._fields_}
        if "struct_bytes" in names:
            self.struct_bytes = ctypes.sizeof(self)
        for name, value in {**self._initial_, **values}.items():
            if name not in names:
                raise TypeError(f"{type(self).__name__} has no {name}")
            setattr(self, name, value)
            # ctypes cuts what is too wide, and says nothing.
            if isinstance(value, int) and \
                    isinstance(kept := getattr(self, name), int) and \
                    kept != value:
                raise ValueError(f"{name} cannot be {value}")
