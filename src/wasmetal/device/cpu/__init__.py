"""The CPU device: NumPy on the very pages, and the oracle that every other device is tested against."""

from wasmetal.device.cpu.device import CpuBackend, CpuDevice, find_devices

__all__ = ["CpuBackend", "CpuDevice", "find_devices"]
