"""Devices: one interface (``base``), one shared half (``opened``) and a package for each backend.

Nothing here depends on Wasm or on models.
"""

from wasmetal.device.base import Binding, Buffer, CommandList, Device, DeviceInfo, MemoryKind, Submission
from wasmetal.device.select import list_devices, open_device

__all__ = [
    "Binding",
    "Buffer",
    "CommandList",
    "Device",
    "DeviceInfo",
    "MemoryKind",
    "Submission",
    "list_devices",
    "open_device",
]
