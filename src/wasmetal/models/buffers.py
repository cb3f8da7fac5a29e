"""Device memory that is released together."""

from __future__ import annotations

import math

from wasmetal.counters import Counters
from wasmetal.device.base import Buffer, Bytes, Device, HostPages, MemoryKind
from wasmetal.ops import DType, Tensor


class BufferGroup:
    """The buffers of one model on one device."""

    def __init__(self, device: Device):
        self.device = device
        self.counters = Counters()
        """Bytes wrapped and loaded."""
        self._buffers: list[Buffer] = []

    def allocate(self, nbytes: int, kind: MemoryKind = MemoryKind.DEVICE) -> Buffer:
        """A new zero-filled buffer. Raises OutOfDeviceMemoryError."""
        buffer = self.device.allocate(nbytes, kind)
        self._buffers.append(buffer)
        return buffer

    def wrap(self, pages: HostPages) -> Buffer:
        """Host pages as a buffer. Raises WrapRefusedError."""
        buffer = self.device.wrap(pages)
        self._buffers.append(buffer)
        self.counters.bytes_shared += pages.nbytes
        return buffer

    def load(self, buffer: Buffer, offset: int, data: Bytes) -> None:
        """Load weights into a buffer of the group."""
        self.device.load(buffer, offset, data)
        self.counters.bytes_loaded += data.size

    def tensor(self, *shape: int, kind: MemoryKind = MemoryKind.DEVICE, dtype: DType = DType.F32) -> Tensor:
        """A new tensor of zeros, in a new buffer. Raises OutOfDeviceMemoryError."""
        nbytes = dtype.row_bytes(math.prod(shape))
        return Tensor(self.allocate(nbytes, kind), 0, dtype, shape)

    def release(self, tensor: Tensor) -> None:
        """Release the buffer of a tensor of the group."""
        tensor.buffer.close()
        self._buffers.remove(tensor.buffer)

    def close(self) -> None:
        """Release every buffer. Idempotent."""
        for buffer in self._buffers:
            buffer.close()
        self._buffers = []
