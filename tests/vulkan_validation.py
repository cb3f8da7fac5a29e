"""The Khronos validation layer, enabled on every Vulkan instance created after :func:`watch`."""

from __future__ import annotations

import logging
from typing import Any

from wasmetal.device.release import on_release
from wasmetal.device.vulkan import physical
from wasmetal.device.vulkan.api import NULL, check, enumerate_all, ffi, lib, struct
from wasmetal.device.vulkan.instance import Instance

LAYER = "VK_LAYER_KHRONOS_validation"
EXTENSIONS = ["VK_EXT_debug_utils", "VK_EXT_validation_features"]

_log = logging.getLogger(__name__)

messages: list[str] = []
"""Every warning and error of the layer in this process."""


def present() -> bool:
    """Whether the layer is installed."""
    layers = enumerate_all("vkEnumerateInstanceLayerProperties", "VkLayerProperties")
    return any(ffi.string(layer.layerName).decode() == LAYER for layer in layers)


def watch() -> None:
    """Enable the layer for new instances."""
    physical.Instance = _watched_instance


@ffi.callback("PFN_vkDebugUtilsMessengerCallbackEXT")
def _receive(severity: int, kinds: int, data: Any, user: Any) -> int:
    messages.append(ffi.string(data.pMessage).decode(errors="replace"))
    _log.warning("%s", messages[-1])  # at once: the reported call may crash the process
    return 0  # do not abort the reported call


# Warnings and errors of the layer, without the loader's general messages.
_MESSENGER = struct(
    "VkDebugUtilsMessengerCreateInfoEXT",
    messageSeverity=lib.VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT
    | lib.VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT,
    messageType=lib.VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT
    | lib.VK_DEBUG_UTILS_MESSAGE_TYPE_PERFORMANCE_BIT_EXT,
    pfnUserCallback=_receive,
)


def _watched_instance() -> Instance:
    checks = struct(
        "VkValidationFeaturesEXT",
        pNext=_MESSENGER,  # for the calls that create and destroy the instance itself
        enabledValidationFeatureCount=1,
        pEnabledValidationFeatures=[lib.VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT],
    )
    instance = Instance(
        pNext=checks,
        enabledLayerCount=1,
        ppEnabledLayerNames=[LAYER],
        enabledExtensionCount=len(EXTENSIONS),
        ppEnabledExtensionNames=EXTENSIONS,
    )
    made = ffi.new("VkDebugUtilsMessengerEXT *")
    create = _function(instance.handle, "vkCreateDebugUtilsMessengerEXT")
    check(create(instance.handle, _MESSENGER, NULL, made), "vkCreateDebugUtilsMessengerEXT")
    # Finalizers run last registered first, so the messenger is destroyed before the instance.
    on_release(instance, _function(instance.handle, "vkDestroyDebugUtilsMessengerEXT"), instance.handle, made[0], NULL)
    return instance


def _function(instance: Any, name: str) -> Any:
    return ffi.cast(f"PFN_{name}", lib.vkGetInstanceProcAddr(instance, name.encode()))
