"""The CPU device: NumPy kernels on host pages, and the oracle that the other devices are tested against."""

from wasmetal.device.cpu.device import CpuBackend, CpuDevice, find_devices

__all__ = ["CpuBackend", "CpuDevice", "find_devices"]
