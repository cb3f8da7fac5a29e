"""The CPU device: NumPy on the very pages, and the oracle that every other device is tested against."""

from wasmetal.device.cpu.device import CpuDevice

__all__ = ["CpuDevice"]
