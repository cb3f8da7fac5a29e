"""Finding GPUs, and opening one with cooperative matrices if those compute what the NumPy kernels compute."""

from __future__ import annotations

from dataclasses import replace

from wasmetal.device.backend import FoundDevice, found_devices
from wasmetal.device.gemm_trials import rounded_gemms
from wasmetal.device.opened import OpenDevice
from wasmetal.device.pipelines import cache_key, code_digest
from wasmetal.device.trial import find_problem
from wasmetal.device.trial_results import TrialResults
from wasmetal.device.vulkan.device import VulkanBackend
from wasmetal.device.vulkan.matrices import SUBGROUP
from wasmetal.device.vulkan.physical import PhysicalDevice, physical_devices


def find_devices() -> list[FoundDevice]:
    """Every device that the drivers enumerate, in the loader's order. Raises DeviceNotFoundError without a driver."""
    return found_devices(physical_devices(), open_gpu)


def open_gpu(physical: PhysicalDevice) -> VulkanBackend:
    """Open a device. Raises DeviceError."""
    if not physical.matrices or physical.info.subgroup_size != SUBGROUP:
        return VulkanBackend(physical)
    results = TrialResults(f"{cache_key('vulkan', physical.cache_key, code_digest('spirv'))}.trials")

    def try_matrices() -> str | None:
        backend = VulkanBackend(physical, matrices=True)
        backend.precision = "standard"
        return find_problem(OpenDevice(backend), rounded_gemms())

    backend = VulkanBackend(physical, results.uses("cooperative matrices", try_matrices))
    backend.info = replace(backend.info, features=backend.info.features + tuple(results.features))
    return backend
