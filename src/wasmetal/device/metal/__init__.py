"""Apple GPUs, through Metal. Guest pages are wrapped where they lie (``newBufferWithBytesNoCopy``).

Importing this package loads the Metal framework; it raises DeviceNotFoundError anywhere but on macOS.
"""

from wasmetal.device.backend import Candidate
from wasmetal.device.metal.device import MetalDevice
from wasmetal.device.metal.physical import physical_devices
from wasmetal.errors import DeviceError, DeviceNotFoundError

__all__ = ["MetalDevice", "candidates", "open_device"]


def candidates() -> list[Candidate]:
    """Every usable GPU. Raises DeviceNotFoundError, which says why, where there is none."""
    found = physical_devices()
    usable = [Candidate(physical.info, physical.tier) for physical in found if physical.problem is None]
    if not usable:
        problems = "; ".join(f"{physical.name}: {physical.problem}" for physical in found)
        raise DeviceNotFoundError(f"no usable Metal device: {problems or 'the system shows none'}")
    return usable


def open_device(index: int) -> MetalDevice:
    """The GPU of an index, in Metal's order. Raises DeviceNotFoundError; DeviceError where it is not usable."""
    found = physical_devices()
    if index >= len(found):
        raise DeviceNotFoundError(f"no device metal:{index}: the system shows {len(found)}")
    if problem := found[index].problem:
        raise DeviceError(f"metal:{index} ({found[index].name}) cannot be used: {problem}")
    return MetalDevice(found[index])
