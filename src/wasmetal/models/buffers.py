"""Device memory that is released together."""

from __future__ import annotations

import math
from collections.abc import Callable

from wasmetal.counters import Counters
from wasmetal.device.base import Buffer, Bytes, Device, HostPages, MemoryKind
from wasmetal.ops import DType, Tensor


class BufferGroup:
    """The buffers of one model on one device."""

    def __init__(self, device: Device, charge: Callable[[int], None] | None = None):
        """``charge`` is called with the bytes of a buffer before it is allocated, and may raise; and, negative, once it
        is released."""
        self.device = device
        self._charge = charge or _nobody
        self._charged: dict[Buffer, int] = {}
        self.counters = Counters()
        """Bytes wrapped and loaded."""
        self._buffers: list[Buffer] = []

    def allocate(self, nbytes: int, kind: MemoryKind = MemoryKind.DEVICE) -> Buffer:
        """A new zero-filled buffer. Raises OutOfDeviceMemoryError."""
        self._charge(nbytes)
        try:
            buffer = self.device.allocate(nbytes, kind)
        except BaseException:
            self._charge(-nbytes)
            raise
        self._charged[buffer] = nbytes
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
        self._charge(-self._charged.pop(tensor.buffer, 0))

    def close(self) -> None:
        """Release every buffer. Idempotent."""
        for buffer in self._buffers:
            buffer.close()
        self._buffers = []
        self._charge(-sum(self._charged.values()))
        self._charged.clear()


def _nobody(_nbytes: int) -> None:
    """Nobody is charged."""
