"""The buffers that callers hold."""

from __future__ import annotations

from wasmetal.device.backend import Allocation, AnyBackend
from wasmetal.device.base import Buffer, Bytes, MemoryKind
from wasmetal.errors import DeviceError
from wasmetal.forked import Origin


class DeviceBuffer:
    """The first ``nbytes`` of an allocation. ``close`` drops the reference; lists and views may hold others."""

    def __init__(
        self, backend: AnyBackend, allocation: Allocation, nbytes: int, kind: MemoryKind, origin: Origin
    ) -> None:
        self._backend: AnyBackend | None = backend
        self._allocation: Allocation | None = allocation
        self._nbytes = nbytes
        self._kind = kind
        self._origin = origin

    @property
    def allocation(self) -> Allocation:
        """The memory behind the buffer. Raises DeviceError if the buffer is closed."""
        if self._allocation is None:
            raise DeviceError("the buffer is closed; close it after its last use")
        return self._allocation

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self._nbytes

    @property
    def kind(self) -> MemoryKind:
        """Where the bytes live."""
        return self._kind

    @property
    def address(self) -> int | None:
        """Host address of the first byte; None if the host cannot see the bytes."""
        return self.allocation.address

    @property
    def device_address(self) -> int | None:
        """Device address of the first byte; None if the device does not expose it."""
        return self.allocation.device_address

    def view(self) -> Bytes:
        """The bytes, uint8 of shape [nbytes], without a copy. Raises DeviceError if the host cannot see them."""
        self._origin.check()
        allocation = self.allocation
        if allocation.address is None:
            raise DeviceError("the host cannot see device memory; use Device.read and Device.write")
        return allocation.view()[: self._nbytes]

    def close(self) -> None:
        """Release the bytes. Idempotent."""
        self._allocation = self._backend = None


def allocation_of(buffer: Buffer, backend: AnyBackend) -> Allocation:
    """The memory behind a buffer. Raises DeviceError if the buffer is closed or belongs to another device."""
    if not isinstance(buffer, DeviceBuffer) or buffer._backend not in (backend, None):
        raise DeviceError(f"a buffer of another device cannot be used; allocate it from {backend.info.name}")
    return buffer.allocation
