"""CUDA's driver API, through the package ``cuda-bindings``, with errors as exceptions."""

from __future__ import annotations

import ctypes
import sys
from functools import cache, partial
from typing import Any

from wasmetal.errors import DeviceError, DeviceLostError, DeviceNotFoundError, OutOfDeviceMemoryError, WrapRefusedError

try:
    from cuda.bindings import driver
except ImportError as error:
    raise DeviceNotFoundError("the package cuda-bindings is not installed: pip install 'wasmetal[cuda]'") from error
except OSError as error:  # it looks for a folder for temporary files, which a confined process has not
    raise DeviceNotFoundError(f"the package cuda-bindings cannot be loaded: {error}") from error

cu: Any = driver

_ERRORS: dict[str, tuple[type[DeviceError], str]] = {
    "OUT_OF_MEMORY": (OutOfDeviceMemoryError, "the device is out of memory"),
    "NO_DEVICE": (DeviceNotFoundError, "the NVIDIA driver has no GPU; CUDA_VISIBLE_DEVICES may hide them"),
    "SYSTEM_DRIVER_MISMATCH": (DeviceNotFoundError, "the NVIDIA driver and its kernel module differ; restart"),
    "INSUFFICIENT_DRIVER": (DeviceNotFoundError, "the NVIDIA driver is too old; install a newer one"),
    "HOST_MEMORY_ALREADY_REGISTERED": (WrapRefusedError, "another part of this process has registered these pages"),
    "NO_BINARY_FOR_GPU": (DeviceError, "the compiled kernel is for another GPU"),
    "ILLEGAL_ADDRESS": (DeviceLostError, "a kernel used a wrong address; end this process"),
    "LAUNCH_FAILED": (DeviceLostError, "a kernel failed; end this process"),
    "LAUNCH_TIMEOUT": (DeviceLostError, "a kernel took too long for the driver; end this process"),
    "ECC_UNCORRECTABLE": (DeviceLostError, "the GPU's memory has failed; see nvidia-smi"),
    "CONTEXT_IS_DESTROYED": (DeviceLostError, "the device was lost; end this process"),
}
"""Of the results by their names, without ``CUDA_ERROR_``: the exception and its message."""

NOT_READY = int(cu.CUresult.CUDA_ERROR_NOT_READY)


def failure(result: Any, function: str) -> DeviceError:
    """The exception for a result other than success."""
    name = getattr(result, "name", f"result {int(result)}").removeprefix("CUDA_ERROR_")
    kind, message = _ERRORS.get(name, (DeviceError, "the NVIDIA driver failed"))
    return kind(f"{message} ({function}: {name})")


def call(function: str, *args: Any) -> Any:
    """Call a function of the driver; return what it writes, or None. Raises DeviceError."""
    result, *written = getattr(cu, function)(*args)
    if result:
        raise failure(result, function)
    return written[0] if written else None


class QuickCall(partial[int]):
    """A call of a function of the driver that returns at once, made over and over with the same arguments.

    Called, it returns the function's result. It does not let go of Python's lock: while other threads compute, a thread
    that does gets it back after 5 ms.
    """

    name: str
    """The function's."""

    def __new__(cls, function: str, *args: Any) -> QuickCall:
        """``args``: addresses and handles, or instances of ctypes' types."""
        made = super().__new__(
            cls,
            getattr(_quick_driver(), function),
            *[ctypes.c_void_p(arg) if isinstance(arg, int) else arg for arg in args],
        )
        made.name = function
        return made


def make(*calls: QuickCall) -> None:
    """Make calls one after the other. Raises DeviceError if one fails."""
    for each in calls:
        if result := each():
            raise failure(cu.CUresult(result), each.name)


@cache
def _quick_driver() -> Any:
    return ctypes.PyDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def start_driver() -> None:
    """Load the driver. Raises DeviceNotFoundError if there is none."""
    try:
        call("cuInit", 0)
    except RuntimeError as error:  # what the package raises if it finds no library
        raise DeviceNotFoundError("no NVIDIA driver (libcuda): install it from your system's packages") from error
