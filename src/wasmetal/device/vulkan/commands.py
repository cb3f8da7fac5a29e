"""Command buffers, and running one that is recorded for once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from wasmetal.device import abandoned
from wasmetal.device.vulkan.api import NULL, call, lib, make, struct
from wasmetal.device.vulkan.logical import LogicalDevice

COMPUTE: int = lib.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT
_WORK: int = COMPUTE | lib.VK_PIPELINE_STAGE_TRANSFER_BIT
_HOST: int = lib.VK_PIPELINE_STAGE_HOST_BIT


def _accesses(write: int, read: int) -> Any:
    return struct("VkMemoryBarrier", srcAccessMask=write, dstAccessMask=write | read)


BY_KERNELS = _accesses(lib.VK_ACCESS_SHADER_WRITE_BIT, lib.VK_ACCESS_SHADER_READ_BIT)
_ALL = _accesses(lib.VK_ACCESS_MEMORY_WRITE_BIT, lib.VK_ACCESS_MEMORY_READ_BIT)


class Commands:
    """A command buffer, recorded once. It has a separate pool, so that any thread can record it.

    Barriers order its commands after all earlier submissions, and make their writes visible to the host after a wait.
    It must be referred to until its last submission has ended.
    """

    def __init__(self, device: LogicalDevice, record: Callable[[Any], None], keeps: Sequence[object]) -> None:
        """Call ``record`` with the ``VkCommandBuffer``. ``keeps``: what the commands use, kept alive with them."""
        family = device.physical.queue_family
        self._pool = device.create("CommandPool", struct("VkCommandPoolCreateInfo", queueFamilyIndex=family))
        self._keeps = keeps
        info = struct("VkCommandBufferAllocateInfo", commandPool=self._pool.handle, commandBufferCount=1)
        self.handle = make("vkAllocateCommandBuffers", "VkCommandBuffer", device.handle, info)
        again = lib.VK_COMMAND_BUFFER_USAGE_SIMULTANEOUS_USE_BIT  # a submission may run it several times
        call("vkBeginCommandBuffer", self.handle, struct("VkCommandBufferBeginInfo", flags=again))
        barrier(self.handle, _WORK, _WORK, _ALL)
        record(self.handle)
        barrier(self.handle, _WORK, _HOST, _ALL)
        call("vkEndCommandBuffer", self.handle)


def run(device: LogicalDevice, record: Callable[[Any], None], keeps: Sequence[object]) -> None:
    """Record commands, submit them and wait for them. Raises DeviceLostError."""
    begin(device, record, keeps)()


def begin(device: LogicalDevice, record: Callable[[Any], None], keeps: Sequence[object]) -> Callable[[], None]:
    """Record commands and submit them; return what waits for them, which must be called. Both raise DeviceLostError."""
    commands = Commands(device, record, keeps)
    wait = partial(device.wait_for, device.submit([commands.handle]))
    return partial(abandoned.finish, wait, commands, device.physical.name)


def barrier(handle: Any, before: int, after: int, accesses: Any) -> None:
    """Record a barrier: the stages ``after`` wait for the stages ``before``, and see what they wrote."""
    lib.vkCmdPipelineBarrier(handle, before, after, 0, 1, accesses, 0, NULL, 0, NULL)
