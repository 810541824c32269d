# SPDX-License-Identifier: Apache-2.0
"""libmoec in Python: mixture-of-experts checkpoints into physical slots,
proved. A thin layer over the C library; its headers are the reference."""
from . import _abi
from ._lib import (ArgumentError, CancelledError, DurabilityError, FileError,
                   FormatError, IntegrityError, LockedError, MappingError,
                   MixedError, MoecError, NoDeviceError, OutOfMemoryError,
                   UnsupportedError, lib)
from .checkpoint import (Checkpoint, Conversion, Families, Finding, Model,
                         Placement, Plan, TensorInfo, is_converted, validate,
                         verify)
from .memory import Tensor

__version__ = lib.moec_version().decode()
# The text is the library's; the numbers must be those of the headers that
# _abi was made of.
if __version__.split(".")[:2] != [str(_abi.MOEC_VERSION_MAJOR),
                                  str(_abi.MOEC_VERSION_MINOR)]:
    raise ImportError(f"libmoec is {__version__}; this package was made for "
                      f"{_abi.MOEC_VERSION_MAJOR}.{_abi.MOEC_VERSION_MINOR}")

__all__ = ["ArgumentError", "CancelledError", "Checkpoint", "Conversion",
           "DurabilityError", "Families", "FileError", "Finding",
           "FormatError", "IntegrityError", "LockedError", "MappingError",
           "MixedError", "Model", "MoecError", "NoDeviceError",
           "OutOfMemoryError", "Placement", "Plan", "Tensor", "TensorInfo",
           "UnsupportedError", "is_converted", "validate", "verify"]
