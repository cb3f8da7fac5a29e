"""Small tensors that host and device share."""

from __future__ import annotations

import math

from wasmetal.device.base import Device, MemoryKind
from wasmetal.ops import ALIGNMENT, DType, Tensor


class Shared:
    """A small tensor that host and device share."""

    def __init__(self, device: Device, dtype: DType, *shape: int) -> None:
        nbytes = -(-dtype.row_bytes(math.prod(shape)) // ALIGNMENT) * ALIGNMENT
        self.tensor = Tensor(device.allocate(nbytes, MemoryKind.SHARED), 0, dtype, shape)
        self.values = self.tensor.numpy()

    def close(self) -> None:
        """Release the memory. Idempotent."""
        self.tensor.buffer.close()
