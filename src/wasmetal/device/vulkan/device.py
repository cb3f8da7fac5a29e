"""The Vulkan backend."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from wasmetal.device.backend import Backend, Dispatch, Range, Work
from wasmetal.device.base import HostPages, MemoryKind
from wasmetal.device.matrix_units import MatrixUnits
from wasmetal.device.vulkan import commands
from wasmetal.device.vulkan.api import lib, struct
from wasmetal.device.vulkan.logical import LogicalDevice
from wasmetal.device.vulkan.memory import DEVICE, SHARED, UNIFIED, VulkanAllocation
from wasmetal.device.vulkan.physical import PhysicalDevice
from wasmetal.device.vulkan.pipeline import Pipeline, VulkanPipelines
from wasmetal.device.vulkan.recording import VulkanRecording
from wasmetal.kernels.catalog import Kernel


class VulkanBackend(Backend[VulkanAllocation, Pipeline, VulkanRecording]):
    """An open Vulkan device."""

    def __init__(self, physical: PhysicalDevice, matrices: MatrixUnits | None = None) -> None:
        """``matrices``: chooses kernels with cooperative matrices."""
        self._matrices = matrices
        self.info = physical.info
        self.grid_limits = physical.grid_limits
        self.logical = LogicalDevice(physical)
        self.pipelines = VulkanPipelines(self.logical)

    def allocate(self, nbytes: int, kind: MemoryKind) -> VulkanAllocation:
        """Zero-filled memory that the driver allocates.

        A discrete GPU's device memory is not mapped, because the host reads it over the bus at megabytes per second;
        copies to and from it are staged.
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
        """Import host pages."""
        return VulkanAllocation(self.logical, pages.nbytes, SHARED, pages)

    def resolve(self, kernel: Kernel, params: bytes, ranges: Sequence[Range[VulkanAllocation]]) -> Pipeline:
        """The compute pipeline of the kernel, or of its variant with cooperative matrices."""
        return self.pipelines.get(self._matrices.choose(self, kernel, params) if self._matrices else kernel)

    def build(self, dispatches: Sequence[Dispatch[VulkanAllocation, Pipeline]]) -> VulkanRecording:
        """Record a command buffer."""
        return VulkanRecording(self.logical, dispatches)

    def start(self, recordings: Sequence[VulkanRecording]) -> VulkanWork:
        """Submit the command buffers to the queue."""
        if len(set(recordings)) < len(recordings):  # then the last run of each has the timestamps
            recordings = [recordings[0].mark, *recordings]
        number = self.logical.submit([recording.commands.handle for recording in recordings])
        return VulkanWork(self.logical, number, recordings)

    def copy(self, source: Range[VulkanAllocation], target: Range[VulkanAllocation]) -> None:
        """Copy between two buffers after all earlier submissions, and wait for the copy."""
        self.begin_copies([(source, target)])()

    def begin_copies(
        self, pairs: Sequence[tuple[Range[VulkanAllocation], Range[VulkanAllocation]]]
    ) -> Callable[[], None]:
        """Copy in one submission."""

        def record(handle: Any) -> None:
            for source, target in pairs:
                region = struct("VkBufferCopy", srcOffset=source.offset, dstOffset=target.offset, size=source.nbytes)
                buffers = source.allocation.buffer.handle, target.allocation.buffer.handle
                lib.vkCmdCopyBuffer(handle, *buffers, 1, region)

        return commands.begin(self.logical, record, pairs)

    def close(self) -> None:
        """Save the pipeline cache."""
        self.pipelines.save()


class VulkanWork(Work):
    """A submission. Its timestamps must be read before any of its recordings is submitted again."""

    def __init__(self, device: LogicalDevice, number: int, recordings: Sequence[VulkanRecording]) -> None:
        self._device = device
        self._number = number
        self._recordings = recordings

    def wait(self, seconds: float) -> bool:
        """Block for at most ``seconds``; return whether the submission has ended. Raises DeviceLostError."""
        return self._device.wait_for(self._number, seconds, self.patient)

    def result(self) -> tuple[float, None]:
        """Seconds from the start of the first kernel to the end of the last, and no error. Raises DeviceLostError."""
        begin, _ = self._recordings[0].timestamps()
        _, end = self._recordings[-1].timestamps()
        return self._device.physical.seconds(begin, end), None
