"""The Vulkan API as C has it, through the cffi declarations of the ``vulkan`` package.

The package's own wrapper functions are not used. They keep only shallow references to the structs they build, so that a
struct in a list is freed before the call that reads it; they raise KeyError for results they do not know; and they cost
microseconds per argument, which a submission per token cannot spare.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

from wasmetal.errors import (
    DeviceError,
    DeviceLostError,
    DeviceNotFoundError,
    OutOfDeviceMemoryError,
    WrapRefusedError,
)

try:
    import vulkan as vk
except OSError as error:
    raise DeviceNotFoundError("no Vulkan loader (libvulkan): install it (Debian: libvulkan1) and a driver") from error

ffi: Any = vk.ffi
lib: Any = vk.lib  # the functions, and every enumeration's constants
NULL: Any = ffi.NULL

_RESULTS: dict[int, str] = ffi.typeof("VkResult").elements

_ERRORS: dict[str, tuple[type[DeviceError], str]] = {
    "VK_ERROR_OUT_OF_HOST_MEMORY": (OutOfDeviceMemoryError, "the Vulkan driver is out of host memory"),
    "VK_ERROR_OUT_OF_DEVICE_MEMORY": (OutOfDeviceMemoryError, "the device is out of memory"),
    "VK_ERROR_TOO_MANY_OBJECTS": (OutOfDeviceMemoryError, "the device has no room for one more allocation"),
    "VK_ERROR_DEVICE_LOST": (DeviceLostError, "the device was lost: its driver reset it; open it again"),
    "VK_ERROR_INCOMPATIBLE_DRIVER": (
        DeviceNotFoundError,
        "no Vulkan driver: install one (Debian: mesa-vulkan-drivers)",
    ),
    "VK_ERROR_INITIALIZATION_FAILED": (DeviceNotFoundError, "the Vulkan driver could not start"),
    "VK_ERROR_INVALID_EXTERNAL_HANDLE": (WrapRefusedError, "the driver would not import these host pages"),
}


def check(result: int, function: str) -> int:
    """Raise the error that a VkResult stands for; return the non-negative ones (VK_TIMEOUT, VK_NOT_READY)."""
    if result >= 0:
        return result
    name = _RESULTS.get(result, f"VkResult {result}")
    kind, message = _ERRORS.get(name, (DeviceError, "the Vulkan driver failed"))
    raise kind(f"{message} ({function}: {name})")


def call(function: str, *args: Any) -> int:
    """Call a function that returns a VkResult, and check it."""
    return check(getattr(lib, function)(*args), function)


def make(function: str, kind: str, *args: Any) -> Any:
    """Call a function whose last argument takes its result: a new handle, a number, a filled struct. Returns that."""
    made = ffi.new(f"{kind} *")
    result = getattr(lib, function)(*args, made)
    if result is not None:
        check(result, function)
    return made[0]


def enumerate_all(function: str, item: str, *args: Any) -> Any:
    """Call one of the functions that fill an array after telling its length; return the array."""
    query = getattr(lib, function)
    count = ffi.new("uint32_t *")
    query(*args, count, NULL)
    items = ffi.new(f"{item}[]", count[0])
    result = query(*args, count, items)
    if result is not None:
        check(result, function)
    return items


_held: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def struct(name: str, **fields: Any) -> Any:
    """A new Vulkan struct, as a pointer, with its ``sType``; what its fields point to lives as long as it does.

    A list becomes the array that the field points to: of handles, numbers, strings, or copies of structs.
    """
    made = ffi.new(f"{name} *")
    types = _field_types(name)
    if "sType" in types:
        made.sType = _structure_type(name)
    values = {
        field: _array(types[field], value) if isinstance(value, list) else value for field, value in fields.items()
    }
    for field, value in values.items():
        setattr(made, field, value)
    _held[made] = values, fields
    return made


def _array(pointer: Any, values: list[Any]) -> Any:
    if pointer.item.kind == "struct":
        values = [value[0] for value in values]
    strings = [ffi.new("char[]", value.encode()) for value in values if isinstance(value, str)]
    made = ffi.new(ffi.getctype(pointer.item, "[]"), strings or values)
    _held[made] = strings
    return made


@cache
def _field_types(name: str) -> dict[str, Any]:
    return {field: of.type for field, of in ffi.typeof(name).fields}


@cache
def _structure_type(name: str) -> int:
    return int(getattr(vk, name)().sType)


def on_release(owner: object, function: Callable[..., None], *args: Any) -> None:
    """Call ``function(*args)`` when nothing refers to ``owner`` any more.

    This is how handles are destroyed. What must outlive the owner is among ``args``, which are held until the call, so
    that no order of dropping is wrong, not even if owner and all become garbage at once. At the end of the process
    nothing is called: the driver's own clean-up has then begun.
    """
    weakref.finalize(owner, function, *args).atexit = False
