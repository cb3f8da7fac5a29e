"""What Vulkan does of a device's work."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from wasmetal.device.backend import Backend, Dispatch, Range
from wasmetal.device.base import HostPages, MemoryKind
from wasmetal.device.vulkan import commands
from wasmetal.device.vulkan.api import lib, struct
from wasmetal.device.vulkan.logical import LogicalDevice
from wasmetal.device.vulkan.memory import DEVICE, SHARED, UNIFIED, VulkanAllocation
from wasmetal.device.vulkan.physical import PhysicalDevice
from wasmetal.device.vulkan.pipeline import Pipeline, Pipelines
from wasmetal.device.vulkan.recording import VulkanRecording
from wasmetal.kernels.catalog import Kernel


class VulkanBackend(Backend[VulkanAllocation, Pipeline, VulkanRecording]):
    """One Vulkan device, opened."""

    def __init__(self, physical: PhysicalDevice) -> None:
        self.info = physical.info
        self.grid_limits = physical.grid_limits
        self.logical = LogicalDevice(physical)
        self.pipelines = Pipelines(self.logical)

    def allocate(self, nbytes: int, kind: MemoryKind) -> VulkanAllocation:
        """Zero-filled memory of the driver's.

        Device memory is mapped on unified devices only: on a discrete GPU a host read through the bus runs at megabytes
        per second, so there it is reached by staging alone.
        """
        discrete = SHARED if kind is MemoryKind.SHARED else DEVICE
        made = VulkanAllocation(self.logical, nbytes, UNIFIED if self.logical.physical.unified else discrete)
        if made.address is not None:
            ctypes.memset(made.address, 0, made.size)
        else:
            buffer = made.buffer.handle
            commands.run(self.logical, lambda handle: lib.vkCmdFillBuffer(handle, buffer, 0, made.size, 0), [made])
        return made

    def wrap(self, pages: HostPages) -> VulkanAllocation:
        """Host pages, imported."""
        return VulkanAllocation(self.logical, pages.nbytes, SHARED, pages)

    def resolve(self, kernel: Kernel, params: bytes, ranges: Sequence[Range[VulkanAllocation]]) -> Pipeline:
        """The kernel's pipeline."""
        return self.pipelines.get(kernel)

    def build(self, dispatches: Sequence[Dispatch[VulkanAllocation, Pipeline]]) -> VulkanRecording:
        """A command buffer."""
        return VulkanRecording(self.logical, dispatches)

    def start(self, recordings: Sequence[VulkanRecording]) -> VulkanWork:
        """Submit the command buffers to the queue."""
        number = commands.submit(self.logical, [recording.commands for recording in recordings])
        return VulkanWork(self.logical, number, recordings)

    def copy(self, source: Range[VulkanAllocation], target: Range[VulkanAllocation]) -> None:
        """Copy between two buffers, behind all that was submitted before."""
        region = struct("VkBufferCopy", srcOffset=source.offset, dstOffset=target.offset, size=source.nbytes)
        buffers = source.allocation.buffer.handle, target.allocation.buffer.handle
        commands.run(self.logical, lambda handle: lib.vkCmdCopyBuffer(handle, *buffers, 1, region), [source, target])

    def close(self) -> None:
        """Save what the driver compiled."""
        self.pipelines.save()


class VulkanWork:
    """A numbered submission. Its timestamps are read before one of its lists runs again and overwrites them."""

    def __init__(self, device: LogicalDevice, number: int, recordings: Sequence[VulkanRecording]) -> None:
        self._device = device
        self._number = number
        self._recordings = recordings

    def wait(self, seconds: float) -> bool:
        """Block for at most so many seconds; return whether the submission has ended. Raises DeviceLostError."""
        return self._device.wait_for(self._number, seconds)

    def ended(self) -> bool:
        """Whether the submission has ended. Raises DeviceLostError."""
        return self._device.wait_for(self._number, 0)

    def result(self) -> tuple[float, None]:
        """The seconds from the first kernel to the end of the last. Raises DeviceLostError."""
        begin, _ = self._recordings[0].timestamps()
        _, end = self._recordings[-1].timestamps()
        return self._device.physical.seconds(begin, end), None
