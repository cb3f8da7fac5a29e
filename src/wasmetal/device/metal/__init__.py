"""Apple GPUs, through Metal. Guest pages are wrapped in place (``newBufferWithBytesNoCopy``).

Importing this package loads the Metal framework; it raises DeviceNotFoundError anywhere but on macOS.
"""

from functools import partial

from wasmetal.device.backend import Candidate, FoundDevice, Unusable
from wasmetal.device.metal.opening import open_gpu
from wasmetal.device.metal.physical import physical_devices

__all__ = ["find_devices"]


def find_devices() -> list[FoundDevice]:
    """Every GPU that Metal shows, in its order."""
    return [
        Unusable(found.name, found.problem)
        if found.problem
        else Candidate(found.info, found.tier, partial(open_gpu, found))
        for found in physical_devices()
    ]
