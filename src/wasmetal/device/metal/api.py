"""Metal through PyObjC, and its errors as wasmetal's.

PyObjC turns ``newBufferWithLength:options:`` into ``newBufferWithLength_options_``; an ``NSError **`` argument
is passed as None and returned as the second of two results.
"""

from __future__ import annotations

from typing import Any

from wasmetal.errors import DeviceError, DeviceLostError, DeviceNotFoundError, OutOfDeviceMemoryError

try:
    import Metal as mtl
    import objc
    from Foundation import NSURL, NSMakeRange, NSProcessInfo
except ImportError as error:
    raise DeviceNotFoundError("no Metal: it is part of macOS; use another device") from error

__all__ = ["NSURL", "NSMakeRange", "NSProcessInfo", "command_error", "error_text", "mtl", "objc", "succeeded"]

_COMMAND_ERRORS: dict[int, tuple[type[DeviceError], str]] = {
    mtl.MTLCommandBufferErrorOutOfMemory: (OutOfDeviceMemoryError, "the GPU is out of memory"),
    mtl.MTLCommandBufferErrorDeviceRemoved: (DeviceLostError, "the GPU was removed; open the device again"),
    mtl.MTLCommandBufferErrorAccessRevoked: (DeviceLostError, "the system took the GPU away; open the device again"),
    mtl.MTLCommandBufferErrorTimeout: (DeviceError, "the system stopped a submission that took too long"),
    mtl.MTLCommandBufferErrorPageFault: (DeviceError, "a kernel accessed memory that is not mapped"),
}


def error_text(error: Any) -> str:
    """An NSError's description, on one line."""
    return " ".join(str(error.localizedDescription()).split()) if error is not None else "no reason given"


def succeeded(result: tuple[Any, Any], what: str) -> Any:
    """The result of a call that returns (result, NSError). Raises DeviceError if it failed: ``what``, and why."""
    made, error = result
    if not made:
        raise DeviceError(f"{what}: {error_text(error)}")
    return made


def command_error(error: Any) -> DeviceError:
    """A command buffer's NSError as a DeviceError."""
    code = int(error.code()) if error is not None else 0
    kind, message = _COMMAND_ERRORS.get(code, (DeviceError, "the GPU failed"))
    return kind(f"{message} (Metal error {code}: {error_text(error)})")
