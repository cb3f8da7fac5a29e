"""Copies to and from device memory that the host does not see, through a staging buffer that it does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from wasmetal.device.base import Bytes, MemoryKind
from wasmetal.device.vulkan.api import lib, struct
from wasmetal.device.vulkan.commandbuffer import CommandBuffer, submit
from wasmetal.device.vulkan.logical import LogicalDevice
from wasmetal.device.vulkan.memory import VulkanAllocation, allocate

CHUNK = 16 << 20
"""Bytes of the staging buffer."""


class Transfer:
    """Copies and fills, each ordered after all that was submitted before it, and done when the call returns."""

    def __init__(self, device: LogicalDevice) -> None:
        self._device = device
        self._commands = CommandBuffer(device)
        self._staging: VulkanAllocation | None = None
        self._lock = threading.Lock()

    def zero(self, target: VulkanAllocation) -> None:
        """Fill an allocation with zeros."""
        with self._lock:
            self._run((target,), lambda commands: lib.vkCmdFillBuffer(commands, target.buffer, 0, target.size, 0))

    def write(self, target: VulkanAllocation, offset: int, data: Bytes) -> None:
        """Copy host bytes to an allocation, from ``offset`` on."""
        with self._lock:
            staging = self._stage()
            for start in range(0, data.size, CHUNK):
                part = data[start : start + CHUNK]
                staging.view()[: part.size] = part
                self._copy(staging, 0, target, offset + start, part.size)

    def read(self, source: VulkanAllocation, offset: int, out: Bytes) -> None:
        """Copy an allocation's bytes, from ``offset`` on, to the host."""
        with self._lock:
            staging = self._stage()
            for start in range(0, out.size, CHUNK):
                part = out[start : start + CHUNK]
                self._copy(source, offset + start, staging, 0, part.size)
                part[:] = staging.view()[: part.size]

    def _stage(self) -> VulkanAllocation:
        self._commands.wait()  # an interrupted copy may still be using it
        if self._staging is None:
            self._staging = allocate(self._device, CHUNK, MemoryKind.SHARED)
        return self._staging

    def _copy(self, source: VulkanAllocation, start: int, target: VulkanAllocation, to: int, nbytes: int) -> None:
        region = struct("VkBufferCopy", srcOffset=start, dstOffset=to, size=nbytes)
        self._run(
            (source, target),
            lambda commands: lib.vkCmdCopyBuffer(commands, source.buffer, target.buffer, 1, region),
        )

    def _run(self, uses: tuple[VulkanAllocation, ...], record: Callable[[Any], None]) -> None:
        commands = self._commands
        commands.wait()
        commands.keeps[:] = uses
        commands.begin()
        record(commands.handle)
        commands.end()
        self._device.wait(submit([commands]))
        commands.keeps.clear()
