"""NVIDIA's GPUs, through CUDA's driver API, with kernels compiled by NVRTC.

Importing this package needs ``cuda-bindings`` (the extra ``cuda``); it raises DeviceNotFoundError without it.
"""

from wasmetal.device.cuda.device import CudaBackend
from wasmetal.device.cuda.opening import find_devices

__all__ = ["CudaBackend", "find_devices"]
