"""The buffers that callers hold."""

from __future__ import annotations

from wasmetal.device.base import Bytes, MemoryKind
from wasmetal.device.metal.memory import Allocation
from wasmetal.errors import DeviceError


class MetalBuffer:
    """The first ``nbytes`` of an allocation. Closing it lets that go; recorded lists and views may hold on to it."""

    def __init__(self, allocation: Allocation, nbytes: int, kind: MemoryKind) -> None:
        self._allocation: Allocation | None = allocation
        self._nbytes = nbytes
        self._kind = kind

    @property
    def allocation(self) -> Allocation:
        """What the buffer stands for. Raises DeviceError once it is closed."""
        if self._allocation is None:
            raise DeviceError("the buffer is closed")
        return self._allocation

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self._nbytes

    @property
    def kind(self) -> MemoryKind:
        """What the bytes were asked for as; the host sees them either way."""
        return self._kind

    @property
    def address(self) -> int | None:
        """Host address of the first byte."""
        return self.allocation.address

    @property
    def device_address(self) -> int | None:
        """The address at which the GPU sees the first byte; None where it does not tell."""
        return self.allocation.device_address

    def view(self) -> Bytes:
        """The bytes themselves, uint8 of shape [nbytes]. Raises DeviceError once the buffer is closed."""
        return self.allocation.view()[: self._nbytes]

    def close(self) -> None:
        """Let the bytes go. Idempotent."""
        self._allocation = None
