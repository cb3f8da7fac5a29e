"""Vulkan 1.2 devices that can import host pages (``VK_EXT_external_memory_host``).

Importing this package loads the system's Vulkan loader; it raises DeviceNotFoundError if there is none.
"""

from wasmetal.device.vulkan.device import VulkanBackend
from wasmetal.device.vulkan.opening import find_devices

__all__ = ["VulkanBackend", "find_devices"]
