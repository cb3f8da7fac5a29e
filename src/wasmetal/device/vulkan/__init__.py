"""Vulkan 1.2 devices that can import host pages (``VK_EXT_external_memory_host``).

Importing this package loads the system's Vulkan loader; it raises DeviceNotFoundError if there is none.
"""

from wasmetal.device.backend import FoundDevice, found_devices
from wasmetal.device.vulkan.device import VulkanBackend
from wasmetal.device.vulkan.physical import physical_devices

__all__ = ["VulkanBackend", "find_devices"]


def find_devices() -> list[FoundDevice]:
    """Every device that the drivers enumerate, in the loader's order. Raises DeviceNotFoundError without a driver."""
    return found_devices(physical_devices(), VulkanBackend)
