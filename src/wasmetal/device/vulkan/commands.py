"""Command buffers that are freed after their last submission has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from wasmetal.device import abandoned
from wasmetal.device.release import on_release
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
    Once nothing refers to the command buffer, it is freed if its last submission has ended, and kept alive until it has
    otherwise.
    """

    def __init__(self, device: LogicalDevice, record: Callable[[Any], None], keeps: Sequence[object]) -> None:
        """Call ``record`` with the ``VkCommandBuffer``. ``keeps``: what the commands use, held until they are freed."""
        self._device = device
        self._last = [0]  # the latest submission; 0 before the first
        family = device.physical.queue_family
        pool = device.create("CommandPool", struct("VkCommandPoolCreateInfo", queueFamilyIndex=family))
        on_release(self, _release, device, self._last, pool, keeps)
        info = struct("VkCommandBufferAllocateInfo", commandPool=pool.handle, commandBufferCount=1)
        self._handle = make("vkAllocateCommandBuffers", "VkCommandBuffer", device.handle, info)
        call("vkBeginCommandBuffer", self._handle, struct("VkCommandBufferBeginInfo"))
        barrier(self._handle, _WORK, _WORK, _ALL)
        record(self._handle)
        barrier(self._handle, _WORK, _HOST, _ALL)
        call("vkEndCommandBuffer", self._handle)


def submit(device: LogicalDevice, buffers: Sequence[Commands]) -> int:
    """Start command buffers, in order; return the number of the submission."""
    number = device.submit([buffer._handle for buffer in buffers])
    for buffer in buffers:
        buffer._last[0] = number
    return number


def run(device: LogicalDevice, record: Callable[[Any], None], keeps: Sequence[object]) -> None:
    """Record commands, submit them and wait for them. Raises DeviceLostError."""
    commands = Commands(device, record, keeps)  # referred to until the wait is over, so that it is freed then
    device.wait(submit(device, [commands]))


def barrier(handle: Any, before: int, after: int, accesses: Any) -> None:
    """Record a barrier: the stages ``after`` wait for the stages ``before``, and see what they wrote."""
    lib.vkCmdPipelineBarrier(handle, before, after, 0, 1, accesses, 0, NULL, 0, NULL)


def _release(device: LogicalDevice, last: list[int], pool: object, keeps: Sequence[object]) -> None:
    if not device.has_ended(last[0]):
        abandoned.keep(partial(device.has_ended, last[0]), (pool, keeps))
