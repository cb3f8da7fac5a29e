"""Finding GPUs, and opening one with cooperative matrices if those compute what the NumPy kernels compute."""

from __future__ import annotations

from dataclasses import replace

from wasmetal.device.backend import FoundDevice, found_devices
from wasmetal.device.matrix_units import FEATURE, SUBGROUP, try_matrices
from wasmetal.device.pipelines import cache_key, code_digest
from wasmetal.device.trial_results import TrialResults
from wasmetal.device.vulkan.device import VulkanBackend
from wasmetal.device.vulkan.physical import PhysicalDevice, physical_devices


def find_devices() -> list[FoundDevice]:
    """Every device that the drivers enumerate, in the loader's order. Raises DeviceNotFoundError without a driver."""
    return found_devices(physical_devices(), open_gpu)


def open_gpu(physical: PhysicalDevice) -> VulkanBackend:
    """Open a device. Raises DeviceError."""
    if not physical.matrices or physical.info.subgroup_size != SUBGROUP:
        return VulkanBackend(physical)
    results = TrialResults(f"{cache_key('vulkan', physical.cache_key, code_digest('spirv'))}.trials")
    works = results.uses(FEATURE, lambda: try_matrices(VulkanBackend(physical, matrices=True)))
    backend = VulkanBackend(physical, works)
    backend.info = replace(backend.info, features=backend.info.features + tuple(results.features))
    return backend
