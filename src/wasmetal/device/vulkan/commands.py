"""Command buffers that know when they may be freed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from wasmetal.device.release import on_release
from wasmetal.device.vulkan.api import NULL, call, lib, make, struct
from wasmetal.device.vulkan.logical import LogicalDevice
from wasmetal.errors import DeviceLostError

COMPUTE: int = lib.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT
_WORK: int = COMPUTE | lib.VK_PIPELINE_STAGE_TRANSFER_BIT
_HOST: int = lib.VK_PIPELINE_STAGE_HOST_BIT


def _accesses(write: int, read: int) -> Any:
    return struct("VkMemoryBarrier", srcAccessMask=write, dstAccessMask=write | read)


BY_KERNELS = _accesses(lib.VK_ACCESS_SHADER_WRITE_BIT, lib.VK_ACCESS_SHADER_READ_BIT)
_ALL = _accesses(lib.VK_ACCESS_MEMORY_WRITE_BIT, lib.VK_ACCESS_MEMORY_READ_BIT)


class Commands:
    """One command buffer, recorded once, in a pool of its own so that any thread may record it.

    Its commands come behind all that was submitted before them, and the host sees what they wrote after a wait. When
    nothing refers to it any more it is freed, once its last submission has ended, and with it what it ``keeps``.
    """

    def __init__(self, device: LogicalDevice, record: Callable[[Any], None], keeps: Sequence[object]) -> None:
        """``record`` is given the ``VkCommandBuffer``; ``keeps`` is what the commands use."""
        self._device = device
        self._last = [0]  # the number of the latest submission, 0 before the first
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
    """Start command buffers, in order; returns the submission's number."""
    number = device.submit([buffer._handle for buffer in buffers])
    for buffer in buffers:
        buffer._last[0] = number
    return number


def run(device: LogicalDevice, record: Callable[[Any], None], keeps: Sequence[object]) -> None:
    """Record commands, submit them and wait for them. Raises DeviceLostError."""
    commands = Commands(device, record, keeps)  # held here, or else its release would do the waiting
    device.wait(submit(device, [commands]))


def barrier(handle: Any, before: int, after: int, accesses: Any) -> None:
    """Order accesses of the stages ``after`` behind those of the stages ``before``."""
    lib.vkCmdPipelineBarrier(handle, before, after, 0, 1, accesses, 0, NULL, 0, NULL)


def _release(device: LogicalDevice, last: list[int], _pool: object, _keeps: Sequence[object]) -> None:
    # What the commands use is among the arguments, and so outlives them.
    with contextlib.suppress(DeviceLostError):  # a lost device is no longer at work
        device.wait(last[0])
