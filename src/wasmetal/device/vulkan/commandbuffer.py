"""Command buffers that know when they may be freed or submitted again."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from wasmetal.device.vulkan.api import NULL, array, call, ffi, lib, on_release, struct
from wasmetal.device.vulkan.logical import LogicalDevice, Owned
from wasmetal.errors import DeviceLostError

COMPUTE: int = lib.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT
TRANSFER: int = lib.VK_PIPELINE_STAGE_TRANSFER_BIT
HOST: int = lib.VK_PIPELINE_STAGE_HOST_BIT

_WRITES = {COMPUTE: lib.VK_ACCESS_SHADER_WRITE_BIT, TRANSFER: lib.VK_ACCESS_TRANSFER_WRITE_BIT}
_READS = {
    COMPUTE: lib.VK_ACCESS_SHADER_READ_BIT,
    TRANSFER: lib.VK_ACCESS_TRANSFER_READ_BIT,
    HOST: lib.VK_ACCESS_HOST_READ_BIT,
}


class CommandBuffer:
    """One command buffer, in a pool of its own so that any thread may record it.

    When nothing refers to it any more it is freed, once its last submission has ended.
    """

    def __init__(self, device: LogicalDevice) -> None:
        self.device = device
        self.last = ffi.new("uint64_t *")
        """The number of the latest submission; 0 before the first."""
        flags = lib.VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT
        pool = device.create(
            "CommandPool",
            struct("VkCommandPoolCreateInfo", flags=flags, queueFamilyIndex=device.physical.queue_family),
        )
        self.keeps: list[object] = []
        """What the recorded commands use, kept for as long as they could run."""
        on_release(self, _release, device, self.last, self.keeps, pool)
        made = ffi.new("VkCommandBuffer *")
        info = struct("VkCommandBufferAllocateInfo", commandPool=pool.handle, commandBufferCount=1)
        call("vkAllocateCommandBuffers", device.handle, info, made)
        self.handle = made[0]

    @property
    def pending(self) -> bool:
        """Whether the device may still be at work on it."""
        return not self.device.completed(self.last[0])

    def wait(self) -> None:
        """Block until the latest submission has ended."""
        self.device.wait(self.last[0])

    def begin(self) -> None:
        """Begin recording, anew; all that was submitted before comes first and is seen."""
        call("vkBeginCommandBuffer", self.handle, struct("VkCommandBufferBeginInfo"))
        self.barrier((COMPUTE, TRANSFER), (COMPUTE, TRANSFER))

    def barrier(self, before: Sequence[int], after: Sequence[int]) -> None:
        """Order every access of the stages ``after`` behind every one of the stages ``before``."""
        read = write = 0
        for stage in after:
            read |= _READS[stage]
            write |= _WRITES.get(stage, 0)
        written = sum(_WRITES[stage] for stage in before)
        memory = struct("VkMemoryBarrier", srcAccessMask=written, dstAccessMask=read | write)
        lib.vkCmdPipelineBarrier(self.handle, sum(before), sum(after), 0, 1, memory, 0, NULL, 0, NULL)

    def end(self) -> None:
        """End recording; what the commands wrote is seen by the host after a wait."""
        self.barrier((COMPUTE, TRANSFER), (HOST,))
        call("vkEndCommandBuffer", self.handle)


def submit(buffers: Sequence[CommandBuffer]) -> int:
    """Start command buffers of one device, in order; returns the submission's number."""
    device = buffers[0].device
    number = device.submit(array("VkCommandBuffer", [buffer.handle for buffer in buffers]))
    for buffer in buffers:
        buffer.last[0] = number
    return number


def _release(device: LogicalDevice, last: Any, keeps: list[object], _pool: Owned) -> None:
    with contextlib.suppress(DeviceLostError):  # a lost device is no longer at work
        device.wait(last[0])
    keeps.clear()
