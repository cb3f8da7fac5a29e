"""The Vulkan instance, which loads the installed drivers."""

from __future__ import annotations

from typing import Any

from wasmetal.device.release import on_release
from wasmetal.device.vulkan.api import NULL, lib, make, struct
from wasmetal.errors import DeviceNotFoundError

API_VERSION = 1 << 22 | 2 << 12
"""Vulkan 1.2: the oldest version of loader and device that works."""


def version_text(version: int) -> str:
    """A packed Vulkan version number as text, such as ``1.3.230``."""
    return f"{version >> 22 & 0x7F}.{version >> 12 & 0x3FF}.{version & 0xFFF}"


class Instance:
    """A Vulkan instance. Raises DeviceNotFoundError if the loader is too old or finds no driver."""

    def __init__(self, **fields: Any) -> None:
        """``fields``: further fields of its ``VkInstanceCreateInfo``, such as layers."""
        loader = make("vkEnumerateInstanceVersion", "uint32_t")
        if loader < API_VERSION:
            raise DeviceNotFoundError(f"the Vulkan loader supports {version_text(loader)}; install 1.2 or later")
        application = struct("VkApplicationInfo", apiVersion=API_VERSION)
        info = struct("VkInstanceCreateInfo", pApplicationInfo=application, **fields)
        self.handle = make("vkCreateInstance", "VkInstance", info, NULL)
        on_release(self, lib.vkDestroyInstance, self.handle, NULL)
