"""Metal as Python has it, through PyObjC, and its errors as ours.

PyObjC turns ``newBufferWithLength:options:`` into ``newBufferWithLength_options_``; an ``NSError **`` argument is given
as None and comes back as the second of two results.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from wasmetal.errors import DeviceError, DeviceLostError, DeviceNotFoundError, OutOfDeviceMemoryError

try:
    import Metal as mtl
    import objc
    from Foundation import NSURL, NSMakeRange, NSProcessInfo
except ImportError as error:
    raise DeviceNotFoundError("no Metal: it is a part of macOS, and PyObjC reaches it from there") from error

__all__ = [
    "NSURL",
    "NSMakeRange",
    "NSProcessInfo",
    "command_error",
    "error_text",
    "load_mps",
    "mtl",
    "objc",
    "succeeded",
]

_COMMAND_ERRORS: dict[int, tuple[type[DeviceError], str]] = {
    mtl.MTLCommandBufferErrorOutOfMemory: (OutOfDeviceMemoryError, "the GPU is out of memory"),
    mtl.MTLCommandBufferErrorDeviceRemoved: (DeviceLostError, "the GPU was removed; open a device again"),
    mtl.MTLCommandBufferErrorAccessRevoked: (DeviceLostError, "the system took the GPU away; open it again"),
    mtl.MTLCommandBufferErrorTimeout: (DeviceError, "the system stopped a submission that took too long"),
    mtl.MTLCommandBufferErrorPageFault: (DeviceError, "a kernel touched memory that is not its own"),
}


@cache
def load_mps() -> Any:
    """Metal Performance Shaders, loaded when they are first asked for; None if PyObjC has no module for them."""
    try:
        return import_module("MetalPerformanceShaders")
    except ImportError:
        return None


def error_text(error: Any) -> str:
    """What an NSError says, on one line."""
    return " ".join(str(error.localizedDescription()).split()) if error is not None else "no reason given"


def succeeded(result: tuple[Any, Any], what: str) -> Any:
    """The first of (result, NSError) if there is one. Raises DeviceError: ``what`` failed, and why."""
    made, error = result
    if not made:
        raise DeviceError(f"{what}: {error_text(error)}")
    return made


def command_error(error: Any) -> DeviceError:
    """The error that a command buffer ended with, as ours."""
    code = int(error.code()) if error is not None else 0
    kind, message = _COMMAND_ERRORS.get(code, (DeviceError, "the GPU failed"))
    return kind(f"{message} (Metal error {code}: {error_text(error)})")
