"""Apple GPUs, through Metal. Guest pages are wrapped in place (``newBufferWithBytesNoCopy``).

Importing this package loads the Metal framework; it raises DeviceNotFoundError anywhere but on macOS.
"""

from wasmetal.device.backend import FoundDevice, found_devices
from wasmetal.device.metal.opening import open_gpu
from wasmetal.device.metal.physical import physical_devices

__all__ = ["find_devices"]


def find_devices() -> list[FoundDevice]:
    """Every GPU that Metal shows, in its order."""
    return found_devices(physical_devices(), open_gpu)
