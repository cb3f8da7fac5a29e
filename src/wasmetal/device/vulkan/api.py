"""The C API of Vulkan, called through the cffi declarations of the ``vulkan`` package.

The package's wrapper functions are not used, for three reasons: they keep only shallow references to the structs that
they build, so a struct in a list is freed before the call that reads it; they raise KeyError for unknown results; and
they cost microseconds per argument, which is too much for a submission per token.
"""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any

from wasmetal.errors import DeviceError, DeviceLostError, DeviceNotFoundError, OutOfDeviceMemoryError, WrapRefusedError

try:
    import vulkan as vk
except OSError as error:
    raise DeviceNotFoundError("no Vulkan loader (libvulkan): install it (Debian: libvulkan1) and a driver") from error

ffi: Any = vk.ffi
lib: Any = vk.lib  # functions and enumeration constants
NULL: Any = ffi.NULL

_RESULTS: dict[int, str] = ffi.typeof("VkResult").elements

_ERRORS: dict[str, tuple[type[DeviceError], str]] = {
    "VK_ERROR_OUT_OF_HOST_MEMORY": (OutOfDeviceMemoryError, "the Vulkan driver is out of host memory"),
    "VK_ERROR_OUT_OF_DEVICE_MEMORY": (OutOfDeviceMemoryError, "the device is out of memory"),
    "VK_ERROR_TOO_MANY_OBJECTS": (OutOfDeviceMemoryError, "the Vulkan driver allows no more allocations"),
    "VK_ERROR_DEVICE_LOST": (DeviceLostError, "the device was lost: the driver reset it; open it again"),
    "VK_ERROR_INCOMPATIBLE_DRIVER": (DeviceNotFoundError, "no Vulkan driver (Debian: install mesa-vulkan-drivers)"),
    "VK_ERROR_INITIALIZATION_FAILED": (DeviceNotFoundError, "the Vulkan driver could not start"),
    "VK_ERROR_INVALID_EXTERNAL_HANDLE": (WrapRefusedError, "the driver cannot import these host pages"),
}


def check(result: int | None, function: str) -> int:
    """Raise the error for a negative VkResult; return any other (VK_TIMEOUT, VK_NOT_READY), and 0 for a void function.

    ``function`` is named in the message.
    """
    if result is None or result >= 0:
        return result or 0
    name = _RESULTS.get(result, f"VkResult {result}")
    kind, message = _ERRORS.get(name, (DeviceError, "the Vulkan driver failed"))
    raise kind(f"{message} ({function}: {name})")


def call(function: str, *args: Any) -> int:
    """Call a Vulkan function and check its result."""
    return check(getattr(lib, function)(*args), function)


def make(function: str, kind: str, *args: Any) -> Any:
    """Call a function that writes a new handle, number or struct through its last argument; return what it wrote."""
    made = ffi.new(f"{kind} *")
    call(function, *args, made)
    return made[0]


def enumerate_all(function: str, item: str, *args: Any, count_type: str = "uint32_t") -> Any:
    """Call a function once for the length of its array and again for the array; return the array."""
    count = ffi.new(f"{count_type} *")
    call(function, *args, count, NULL)
    items = ffi.new(f"{item}[]", count[0])
    call(function, *args, count, items)
    return items


_held: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def struct(name: str, **fields: Any) -> Any:
    """A pointer to a new Vulkan struct, with its ``sType`` set; it keeps everything that its fields point to alive.

    A list of handles, numbers, strings or structs becomes the array that the field points to.
    """
    types, constants = _layout(name)
    values = {f: _array(types[f], value) if isinstance(value, list) else value for f, value in fields.items()}
    made = ffi.new(f"{name} *", constants | values)
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
def _layout(name: str) -> tuple[dict[str, Any], dict[str, int]]:
    """The type of each field of a struct, and the values that never change: its ``sType``, if it has one."""
    types = {field: of.type for field, of in ffi.typeof(name).fields}
    return types, {"sType": int(getattr(vk, name)().sType)} if "sType" in types else {}
