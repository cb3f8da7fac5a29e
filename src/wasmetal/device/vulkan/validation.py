"""The Khronos validation layer, on when ``WASMETAL_VULKAN_VALIDATION=1``; what it finds is kept for the tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from wasmetal.device.vulkan.api import NULL, check, enumerate_all, ffi, instance_function, lib, struct
from wasmetal.errors import DeviceError

LAYER = "VK_LAYER_KHRONOS_validation"
_EXTENSIONS = ["VK_EXT_debug_utils", "VK_EXT_validation_features"]

messages: list[str] = []
"""Every warning and error of the layer since the process began."""

_log = logging.getLogger(__name__)


def requested() -> bool:
    """Whether the environment asks for the layer."""
    return os.environ.get("WASMETAL_VULKAN_VALIDATION") == "1"


def present() -> bool:
    """Whether the layer is installed."""
    layers = enumerate_all("vkEnumerateInstanceLayerProperties", "VkLayerProperties")
    return any(ffi.string(layer.layerName).decode() == LAYER for layer in layers)


@ffi.callback("PFN_vkDebugUtilsMessengerCallbackEXT")  # type: ignore[untyped-decorator]
def _receive(severity: int, kinds: int, data: Any, user: Any) -> int:
    text = ffi.string(data.pMessage).decode(errors="replace")
    messages.append(text)
    _log.warning("%s", text)
    return 0  # the call that is being reported goes on


# The layer's own warnings and errors; the loader's chatter is left out.
_MESSENGER = struct(
    "VkDebugUtilsMessengerCreateInfoEXT",
    messageSeverity=lib.VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT
    | lib.VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT,
    messageType=lib.VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT
    | lib.VK_DEBUG_UTILS_MESSAGE_TYPE_PERFORMANCE_BIT_EXT,
    pfnUserCallback=_receive,
)


def instance_fields() -> dict[str, Any]:
    """What turns the layer on in a ``VkInstanceCreateInfo``. Raises DeviceError if it is not installed."""
    if not present():
        raise DeviceError(
            f"WASMETAL_VULKAN_VALIDATION=1, but {LAYER} is not installed (Debian: vulkan-validationlayers)"
        )
    checks = struct(
        "VkValidationFeaturesEXT",
        pNext=_MESSENGER,  # for the calls that create and destroy the instance itself
        enabledValidationFeatureCount=1,
        pEnabledValidationFeatures=[lib.VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT],
    )
    return {
        "pNext": checks,
        "enabledLayerCount": 1,
        "ppEnabledLayerNames": [LAYER],
        "enabledExtensionCount": len(_EXTENSIONS),
        "ppEnabledExtensionNames": _EXTENSIONS,
    }


def listen(instance: Any) -> Callable[[], None]:
    """Have the layer's messages collected; returns what ends that, to be called before the instance is destroyed."""
    made = ffi.new("VkDebugUtilsMessengerEXT *")
    create = instance_function(instance, "vkCreateDebugUtilsMessengerEXT")
    check(create(instance, _MESSENGER, NULL, made), "vkCreateDebugUtilsMessengerEXT")
    return partial(instance_function(instance, "vkDestroyDebugUtilsMessengerEXT"), instance, made[0], NULL)
