"""What Vulkan does of a device's work."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from wasmetal.device.backend import Backend, Dispatch, Range
from wasmetal.device.base import Bytes, HostPages, MemoryKind
from wasmetal.device.vulkan.commandbuffer import submit
from wasmetal.device.vulkan.logical import LogicalDevice
from wasmetal.device.vulkan.memory import VulkanAllocation, allocate, import_pages
from wasmetal.device.vulkan.physical import PhysicalDevice
from wasmetal.device.vulkan.pipeline import Pipeline, Pipelines
from wasmetal.device.vulkan.recording import VulkanRecording
from wasmetal.device.vulkan.transfer import Transfer
from wasmetal.kernels.catalog import Kernel


class VulkanBackend(Backend[VulkanAllocation, Pipeline, VulkanRecording]):
    """One Vulkan device, opened."""

    def __init__(self, physical: PhysicalDevice) -> None:
        self.info = physical.info
        x, y, z = physical.limits.maxComputeWorkGroupCount
        self.grid_limits = (x, y, z)
        self.logical = LogicalDevice(physical)
        self.pipelines = Pipelines(self.logical)
        self._transfer = Transfer(self.logical)

    def allocate(self, nbytes: int, kind: MemoryKind) -> VulkanAllocation:
        """Zero-filled memory of the driver's."""
        allocation = allocate(self.logical, nbytes, kind)
        if allocation.address is None:
            self._transfer.zero(allocation)
        else:
            ctypes.memset(allocation.address, 0, allocation.size)
        return allocation

    def wrap(self, pages: HostPages) -> VulkanAllocation:
        """Host pages, imported."""
        return import_pages(self.logical, pages)

    def resolve(self, kernel: Kernel, params: bytes, ranges: Sequence[Range[VulkanAllocation]]) -> Pipeline:
        """The kernel's pipeline."""
        return self.pipelines.get(kernel)

    def build(self, dispatches: Sequence[Dispatch[VulkanAllocation, Pipeline]]) -> VulkanRecording:
        """A command buffer."""
        return VulkanRecording(self.logical, dispatches)

    def start(self, recordings: Sequence[VulkanRecording]) -> VulkanWork:
        """Submit the command buffers to the queue."""
        return VulkanWork(self.logical, submit([recording.commands for recording in recordings]), recordings)

    def copy_in(self, allocation: VulkanAllocation, offset: int, data: Bytes) -> None:
        """Copy host bytes into memory; through a staging buffer if the host does not see it."""
        if allocation.address is None:
            self._transfer.write(allocation, offset, data)
        else:
            super().copy_in(allocation, offset, data)

    def copy_out(self, allocation: VulkanAllocation, offset: int, out: Bytes) -> None:
        """Copy bytes of memory to the host; through a staging buffer if the host does not see it."""
        if allocation.address is None:
            self._transfer.read(allocation, offset, out)
        else:
            super().copy_out(allocation, offset, out)

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
        return self._device.completed(self._number)

    def result(self) -> tuple[float, None]:
        """The seconds from the first kernel to the end of the last. Raises DeviceLostError."""
        begin, _ = self._recordings[0].timestamps()
        _, end = self._recordings[-1].timestamps()
        return self._device.physical.seconds(begin, end), None
