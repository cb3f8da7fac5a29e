"""The CPU device: kernels in C, or else in NumPy, on host pages."""

from wasmetal.device.cpu.device import CpuBackend, CpuDevice, find_devices

__all__ = ["CpuBackend", "CpuDevice", "find_devices"]
