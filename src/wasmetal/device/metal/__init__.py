"""Apple GPUs, through Metal. Guest pages are wrapped in place (``newBufferWithBytesNoCopy``).

Importing this package loads the Metal framework; except on macOS, that raises DeviceNotFoundError.
"""

from wasmetal.device.backend import FoundDevice, found_devices
from wasmetal.device.metal.opening import open_gpu
from wasmetal.device.metal.physical import physical_devices

__all__ = ["find_devices"]


def find_devices() -> list[FoundDevice]:
    """Every GPU that Metal lists, in Metal's order."""
    return found_devices(physical_devices(), open_gpu)
