"""The Vulkan device."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from wasmetal.counters import Counters
from wasmetal.device.base import Buffer, Bytes, CommandList, DeviceInfo, HostPages, MemoryKind
from wasmetal.device.checks import check_copy
from wasmetal.device.vulkan.buffer import VulkanBuffer
from wasmetal.device.vulkan.commands import Recording, VulkanCommandList
from wasmetal.device.vulkan.logical import LogicalDevice
from wasmetal.device.vulkan.memory import Allocation, allocate, import_pages
from wasmetal.device.vulkan.physical import PhysicalDevice
from wasmetal.device.vulkan.pipeline import Pipelines
from wasmetal.device.vulkan.submission import Submissions, VulkanSubmission
from wasmetal.device.vulkan.transfer import Transfer
from wasmetal.errors import DeviceError, DeviceLostError


class _Parts:
    """What an open device is made of."""

    def __init__(self, physical: PhysicalDevice, counters: Counters) -> None:
        self.logical = LogicalDevice(physical)
        self.pipelines = Pipelines(self.logical)
        self.transfer = Transfer(self.logical)
        self.submissions = Submissions(self.logical, counters)


class VulkanDevice:
    """One Vulkan device, opened. Any thread may use it; a command list is recorded by one at a time.

    ``read``, ``write`` and ``load`` touch host-visible memory at once, so wait first for submissions that use it.
    """

    def __init__(self, physical: PhysicalDevice) -> None:
        self._info = physical.info
        self._counters = Counters()
        self._counting = threading.Lock()
        self._buffers: weakref.WeakSet[VulkanBuffer] = weakref.WeakSet()
        self._lists: weakref.WeakSet[VulkanCommandList] = weakref.WeakSet()
        self._parts: _Parts | None = _Parts(physical, self._counters)

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
        allocation = allocate(parts.logical, nbytes, kind)
        if allocation.address is None:
            parts.transfer.zero(allocation)
        else:
            ctypes.memset(allocation.address, 0, allocation.size)
        return self._keep(VulkanBuffer(allocation, kind))

    def wrap(self, pages: HostPages) -> Buffer:
        """Host pages as a buffer, not copied; they stay mapped for as long as the buffer or its view is used.

        Raises WrapRefusedError.
        """
        allocation = import_pages(self._open().logical, pages)
        with self._counting:
            self._counters.bytes_shared += allocation.nbytes
        return self._keep(VulkanBuffer(allocation, MemoryKind.SHARED))

    def record(self) -> CommandList:
        """A new, empty command list."""
        parts = self._open()
        commands = VulkanCommandList(parts.logical, parts.pipelines)
        self._lists.add(commands)
        return commands

    def submit(self, lists: Sequence[CommandList]) -> VulkanSubmission:
        """Start finished lists, in order, as one submission. Raises DeviceError where one is still at work."""
        parts = self._open()
        return parts.submissions.start([_recording(parts, commands) for commands in lists])

    def write(self, buffer: Buffer, offset: int, data: Bytes) -> None:
        """Copy host bytes into a buffer; counted in ``bytes_copied``."""
        self._copy_in(buffer, offset, data)
        with self._counting:
            self._counters.bytes_copied += data.size

    def load(self, buffer: Buffer, offset: int, data: Bytes) -> None:
        """Like :meth:`write`, for model weights; counted in ``bytes_loaded``."""
        self._copy_in(buffer, offset, data)
        with self._counting:
            self._counters.bytes_loaded += data.size

    def read(self, buffer: Buffer, offset: int, out: Bytes) -> None:
        """Copy a buffer's bytes to the host; counted in ``bytes_copied``."""
        parts = self._open()
        allocation = _range(parts, buffer, offset, out)
        if allocation.address is None:
            parts.transfer.read(allocation, offset, out)
        else:
            out[:] = allocation.view()[offset : offset + out.size]
        with self._counting:
            self._counters.bytes_copied += out.size

    def close(self) -> None:
        """Wait, save the pipelines, close every list and buffer. Idempotent. Views that are still held stay valid."""
        parts, self._parts = self._parts, None
        if parts is None:
            return
        with contextlib.suppress(DeviceLostError):  # there is nothing left to wait for, or to save
            parts.submissions.wait_all()
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

    def _keep(self, buffer: VulkanBuffer) -> VulkanBuffer:
        self._buffers.add(buffer)
        return buffer

    def _copy_in(self, buffer: Buffer, offset: int, data: Bytes) -> None:
        parts = self._open()
        allocation = _range(parts, buffer, offset, data)
        if allocation.address is None:
            parts.transfer.write(allocation, offset, data)
        else:
            allocation.view()[offset : offset + data.size] = data


def _recording(parts: _Parts, commands: CommandList) -> Recording:
    if not isinstance(commands, VulkanCommandList) or commands.device is not parts.logical:
        raise DeviceError("a command list of another device cannot be submitted")
    return commands.recording


def _range(parts: _Parts, buffer: Buffer, offset: int, data: Bytes) -> Allocation:
    """The allocation behind a buffer, once ``data`` is known to fit it at ``offset``."""
    if not isinstance(buffer, VulkanBuffer) or buffer.allocation.device is not parts.logical:
        raise DeviceError("a buffer of another device cannot be copied")
    check_copy(buffer, offset, data)
    return buffer.allocation
