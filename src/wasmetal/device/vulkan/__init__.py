"""Vulkan 1.2 devices that can import host pages (``VK_EXT_external_memory_host``).

Importing this package loads the system's Vulkan loader; it raises DeviceNotFoundError where there is none.
"""

from wasmetal.device.backend import Candidate
from wasmetal.device.vulkan.device import VulkanDevice
from wasmetal.device.vulkan.physical import physical_devices
from wasmetal.errors import DeviceError, DeviceNotFoundError

__all__ = ["VulkanDevice", "candidates", "open_device"]


def candidates() -> list[Candidate]:
    """Every usable device. Raises DeviceNotFoundError, which says why, where there is none."""
    found = physical_devices()
    usable = [Candidate(physical.info, physical.tier) for physical in found if physical.problem is None]
    if not usable:
        problems = "; ".join(f"{physical.name}: {physical.problem}" for physical in found)
        raise DeviceNotFoundError(f"no usable Vulkan device: {problems or 'the installed drivers show none'}")
    return usable


def open_device(index: int) -> VulkanDevice:
    """The device of an index, in the loader's order. Raises DeviceNotFoundError; DeviceError where it is not usable."""
    found = physical_devices()
    if index >= len(found):
        raise DeviceNotFoundError(f"no device vulkan:{index}: the installed drivers show {len(found)}")
    if problem := found[index].problem:
        raise DeviceError(f"vulkan:{index} ({found[index].name}) cannot be used: {problem}")
    return VulkanDevice(found[index])
