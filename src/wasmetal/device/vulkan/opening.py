"""Finding devices, and opening one."""

from __future__ import annotations

from functools import partial

from wasmetal.device.backend import FoundDevice, found_devices
from wasmetal.device.matrix_units import with_matrix_units
from wasmetal.device.pipelines import cache_key, code_digest
from wasmetal.device.vulkan.device import VulkanBackend
from wasmetal.device.vulkan.physical import PhysicalDevice, physical_devices


def find_devices() -> list[FoundDevice]:
    """Every device that the drivers enumerate, in the loader's order. Raises DeviceNotFoundError without a driver."""
    return found_devices(physical_devices(), open_gpu)


def open_gpu(physical: PhysicalDevice) -> VulkanBackend:
    """Open a device. Raises DeviceError."""
    if not physical.matrices:
        return VulkanBackend(physical)
    key = cache_key("vulkan", physical.cache_key, code_digest("spirv"))
    return with_matrix_units(key, partial(VulkanBackend, physical))
