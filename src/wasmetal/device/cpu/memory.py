"""Memory of the CPU device: host pages."""

from __future__ import annotations

import mmap

import numpy as np

from wasmetal.device.base import Bytes
from wasmetal.errors import OutOfDeviceMemoryError


class Pages:
    """Page-aligned host memory, allocated or wrapped. The array keeps the bytes mapped."""

    def __init__(self, data: Bytes) -> None:
        self._data = data
        self.address = data.ctypes.data
        self.device_address = self.address

    def view(self) -> Bytes:
        """The bytes, a one-dimensional uint8 array."""
        return self._data


def allocate(nbytes: int) -> Pages:
    """New zero-filled pages. Raises OutOfDeviceMemoryError."""
    try:
        # Private: Python's default is memory that a forked process shares.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        return Pages(np.frombuffer(mmap.mmap(-1, nbytes, flags=flags), np.uint8))
    except (OSError, ValueError, OverflowError) as error:
        raise OutOfDeviceMemoryError(f"{nbytes} bytes of host memory: {error}; free some memory") from error
