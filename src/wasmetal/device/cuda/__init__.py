"""NVIDIA's GPUs, through CUDA's driver API, with kernels compiled by NVRTC.

Importing this package needs ``cuda-bindings`` (the extra ``cuda``); it raises DeviceNotFoundError without it.
"""

from wasmetal.device.backend import FoundDevice, found_devices
from wasmetal.device.cuda.device import CudaBackend
from wasmetal.device.cuda.physical import physical_devices

__all__ = ["CudaBackend", "find_devices"]


def find_devices() -> list[FoundDevice]:
    """Every GPU that the driver lists, in its order. Raises DeviceNotFoundError without a driver."""
    return found_devices(physical_devices(), CudaBackend)
