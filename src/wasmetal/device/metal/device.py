"""The Metal device."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from wasmetal.counters import Counters
from wasmetal.device.base import Buffer, Bytes, CommandList, DeviceInfo, HostPages, MemoryKind
from wasmetal.device.checks import check_copy
from wasmetal.device.metal import productcheck
from wasmetal.device.metal.buffer import MetalBuffer
from wasmetal.device.metal.commands import MetalCommandList, Recording
from wasmetal.device.metal.filecheck import check_seen
from wasmetal.device.metal.memory import allocate, wrap_pages
from wasmetal.device.metal.physical import PhysicalDevice
from wasmetal.device.metal.pipeline import Pipelines
from wasmetal.device.metal.products import Products
from wasmetal.device.metal.queue import MetalSubmission, Queue
from wasmetal.device.metal.simdgroups import find_obstacle
from wasmetal.errors import DeviceError, DeviceLostError


class _Parts:
    """What an open device is made of."""

    def __init__(self, physical: PhysicalDevice, counters: Counters) -> None:
        self.queue = Queue(physical, counters)
        self.pipelines = Pipelines(physical)
        self.products: Products | None = None


class MetalDevice:
    """One GPU, opened. Any thread may use it; a command list is recorded by one at a time.

    The host sees every buffer. ``read``, ``write`` and ``load`` touch the bytes at once, so wait first for submissions
    that use them.
    """

    def __init__(self, physical: PhysicalDevice) -> None:
        self._counters = Counters()
        self._buffers: weakref.WeakSet[MetalBuffer] = weakref.WeakSet()
        self._lists: weakref.WeakSet[MetalCommandList] = weakref.WeakSet()
        parts = _Parts(physical, self._counters)
        self._parts: _Parts | None = parts
        simdgroups = find_obstacle(physical, parts.pipelines)
        products = productcheck.find_obstacle(physical, parts.pipelines)
        if products is None:
            parts.products = Products(physical.handle)
        kept = {
            "residency set": parts.queue.residency.kept,
            "pipeline archive": parts.pipelines.archive.kept,
        }
        features = (
            *physical.info.features,
            *(name for name, has in kept.items() if has),
            f"no MPS ({products})" if products else "large products by MPS",
            f"no simdgroup matrices ({simdgroups})" if simdgroups else "simdgroup matrices",
        )
        self._info = replace(physical.info, simdgroup_matrices=simdgroups is None, features=features)

    @property
    def info(self) -> DeviceInfo:
        """What the device is."""
        return self._info

    @property
    def counters(self) -> Counters:
        """What this device has copied, shared and run since it was opened."""
        return self._counters

    def allocate(self, nbytes: int, kind: MemoryKind = MemoryKind.DEVICE) -> Buffer:
        """A new zero-filled buffer of ``nbytes`` > 0. Raises OutOfDeviceMemoryError."""
        parts = self._open()
        if nbytes < 1:
            raise DeviceError(f"a buffer of {nbytes} bytes cannot be allocated")
        return self._keep(MetalBuffer(allocate(parts.queue, nbytes), nbytes, kind))

    def wrap(self, pages: HostPages) -> Buffer:
        """Host pages as a buffer, not copied; they stay mapped for as long as the buffer or its view is used.

        Raises WrapRefusedError.
        """
        allocation = wrap_pages(self._open().queue, pages)
        buffer = self._keep(MetalBuffer(allocation, allocation.nbytes, MemoryKind.SHARED))
        if not allocation.view().flags.writeable:
            try:
                check_seen(self, buffer)
            except DeviceError:
                buffer.close()
                raise
        self._counters.bytes_shared += allocation.nbytes
        return buffer

    def record(self) -> CommandList:
        """A new, empty command list."""
        parts = self._open()
        commands = MetalCommandList(parts.queue, parts.pipelines, parts.products)
        self._lists.add(commands)
        return commands

    def submit(self, lists: Sequence[CommandList]) -> MetalSubmission:
        """Start finished lists, in order, as one submission. Raises DeviceLostError."""
        parts = self._open()
        if not lists:
            raise DeviceError("a submission needs at least one command list")
        return parts.queue.submit([_recording(parts, commands) for commands in lists])

    def write(self, buffer: Buffer, offset: int, data: Bytes) -> None:
        """Copy host bytes into a buffer; counted in ``bytes_copied``."""
        self._range(buffer, offset, data)[:] = data
        self._counters.bytes_copied += data.size

    def load(self, buffer: Buffer, offset: int, data: Bytes) -> None:
        """Like :meth:`write`, for model weights; counted in ``bytes_loaded``."""
        self._range(buffer, offset, data)[:] = data
        self._counters.bytes_loaded += data.size

    def read(self, buffer: Buffer, offset: int, out: Bytes) -> None:
        """Copy a buffer's bytes to the host; counted in ``bytes_copied``."""
        out[:] = self._range(buffer, offset, out)
        self._counters.bytes_copied += out.size

    def close(self) -> None:
        """Wait, save the pipelines, close every list and buffer. Idempotent. Views that are still held stay valid."""
        parts, self._parts = self._parts, None
        if parts is None:
            return
        with contextlib.suppress(DeviceLostError):  # there is nothing left to wait for, or to save
            parts.queue.wait_all()
            parts.pipelines.save()
        for commands in list(self._lists):
            commands.close()
        for buffer in list(self._buffers):
            buffer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> _Parts:
        if self._parts is None:
            raise DeviceError("the device is closed")
        return self._parts

    def _keep(self, buffer: MetalBuffer) -> MetalBuffer:
        self._buffers.add(buffer)
        return buffer

    def _range(self, buffer: Buffer, offset: int, data: Bytes) -> Bytes:
        """The bytes of a buffer that ``data`` is to be copied to or from, once it is known to fit there."""
        parts = self._open()
        if not isinstance(buffer, MetalBuffer) or buffer.allocation.queue is not parts.queue:
            raise DeviceError("a buffer of another device cannot be copied")
        check_copy(buffer, offset, data)
        return buffer.view()[offset : offset + data.size]


def _recording(parts: _Parts, commands: CommandList) -> Recording:
    if not isinstance(commands, MetalCommandList) or commands.queue is not parts.queue:
        raise DeviceError("a command list of another device cannot be submitted")
    return commands.recording
