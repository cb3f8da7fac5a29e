"""Command lists: dispatches noted as they come, and turned into one Vulkan command buffer when the list is finished."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wasmetal.device.base import Binding
from wasmetal.device.checks import check_binding, check_call
from wasmetal.device.hazards import Hazards, Touch
from wasmetal.device.vulkan.api import NULL, array, call, ffi, lib, struct
from wasmetal.device.vulkan.buffer import VulkanBuffer
from wasmetal.device.vulkan.commandbuffer import COMPUTE, CommandBuffer
from wasmetal.device.vulkan.logical import LogicalDevice
from wasmetal.device.vulkan.memory import Allocation
from wasmetal.device.vulkan.pipeline import Pipeline, Pipelines
from wasmetal.errors import DeviceError, DeviceLostError
from wasmetal.kernels.catalog import Kernel

_BIND_POINT: int = lib.VK_PIPELINE_BIND_POINT_COMPUTE
_STAGE: int = lib.VK_SHADER_STAGE_COMPUTE_BIT


@dataclass(frozen=True, slots=True)
class _Range:
    """A binding, checked; it holds on to the allocation even if the buffer is closed before the list is finished."""

    allocation: Allocation
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Dispatch:
    pipeline: Pipeline
    ranges: tuple[_Range, ...]
    params: bytes
    groups: tuple[int, int, int]


class Recording:
    """A finished list: a command buffer between two timestamps, ready to be submitted again and again."""

    def __init__(self, device: LogicalDevice, dispatches: Sequence[_Dispatch]) -> None:
        self.dispatches = len(dispatches)
        self.commands = CommandBuffer(device)
        query_info = struct("VkQueryPoolCreateInfo", queryType=lib.VK_QUERY_TYPE_TIMESTAMP, queryCount=2)
        self._queries = device.create("QueryPool", query_info)
        self._stamps = ffi.new("uint64_t[2]")
        keeps: list[object] = [self._queries]
        sets = _descriptor_sets(device, dispatches, keeps) if dispatches else []
        for dispatch in dispatches:
            keeps += [dispatch.pipeline, *(bound.allocation for bound in dispatch.ranges)]
        self.commands.keeps[:] = keeps
        self.commands.begin()
        handle = self.commands.handle
        lib.vkCmdResetQueryPool(handle, self._queries.handle, 0, 2)
        lib.vkCmdWriteTimestamp(handle, COMPUTE, self._queries.handle, 0)
        self._record(dispatches, sets)
        lib.vkCmdWriteTimestamp(handle, COMPUTE, self._queries.handle, 1)
        self.commands.end()

    def timestamps(self) -> tuple[int, int]:
        """When the latest submission began and ended, in the device's ticks. Only once it has ended."""
        flags = lib.VK_QUERY_RESULT_64_BIT | lib.VK_QUERY_RESULT_WAIT_BIT
        device, queries = self.commands.device, self._queries.handle
        call("vkGetQueryPoolResults", device.handle, queries, 0, 2, 16, self._stamps, 8, flags)
        return self._stamps[0], self._stamps[1]

    def _record(self, dispatches: Sequence[_Dispatch], sets: Sequence[Any]) -> None:
        handle = self.commands.handle
        hazards = Hazards()
        bound = None
        for dispatch, descriptors in zip(dispatches, sets, strict=True):
            pipeline = dispatch.pipeline
            if hazards.needs_barrier(_touches(dispatch)):
                self.commands.barrier((COMPUTE,), (COMPUTE,))
            if pipeline is not bound:
                lib.vkCmdBindPipeline(handle, _BIND_POINT, pipeline.handle)
                bound = pipeline
            lib.vkCmdBindDescriptorSets(
                handle, _BIND_POINT, pipeline.layout, 0, 1, array("VkDescriptorSet", [descriptors]), 0, NULL
            )
            if dispatch.params:
                size = len(dispatch.params)
                lib.vkCmdPushConstants(handle, pipeline.layout, _STAGE, 0, size, ffi.from_buffer(dispatch.params))
            lib.vkCmdDispatch(handle, *dispatch.groups)


class VulkanCommandList:
    """Dispatches under way to becoming a :class:`Recording`."""

    def __init__(self, device: LogicalDevice, pipelines: Pipelines) -> None:
        self._device = device
        self._pipelines = pipelines
        self._dispatches: list[_Dispatch] | None = []
        self._recording: Recording | None = None

    @property
    def device(self) -> LogicalDevice:
        """The device that the list is for."""
        return self._device

    @property
    def recording(self) -> Recording:
        """What :meth:`finish` made. Raises DeviceError before that, and once the list is closed."""
        if self._recording is None:
            raise DeviceError(
                "the command list is closed" if self._dispatches is None else "the command list is not finished"
            )
        return self._recording

    def dispatch(
        self, kernel: Kernel, bindings: Sequence[Binding], params: bytes, groups: tuple[int, int, int]
    ) -> None:
        """Note one kernel. Raises DeviceError where it does not fit the kernel or the device."""
        dispatches = self._open()
        pipeline = self._pipelines.get(kernel)
        physical = self._device.physical
        check_call(physical.info, kernel, bindings, params, groups, tuple(physical.limits.maxComputeWorkGroupCount))
        ranges = tuple(_resolve(self._device, binding) for binding in bindings)
        dispatches.append(_Dispatch(pipeline, ranges, params, groups))

    def finish(self) -> None:
        """End recording."""
        self._recording = Recording(self._device, self._open())
        self._dispatches = []

    def close(self) -> None:
        """Wait for a pending submission and let everything go. Idempotent."""
        if self._recording is not None:
            with contextlib.suppress(DeviceLostError):  # a lost device is no longer at work
                self._recording.commands.wait()
        self._recording = self._dispatches = None

    def _open(self) -> list[_Dispatch]:
        if self._dispatches is None:
            raise DeviceError("the command list is closed")
        if self._recording is not None:
            raise DeviceError("the command list is finished: record another")
        return self._dispatches


def _resolve(device: LogicalDevice, binding: Binding) -> _Range:
    """A binding's range, checked against its buffer and the device."""
    buffer = binding.buffer
    if not isinstance(buffer, VulkanBuffer) or buffer.allocation.device is not device:
        raise DeviceError("a buffer of another device cannot be bound")
    check_binding(device.physical.info, binding)
    return _Range(buffer.allocation, binding.offset, binding.nbytes)


def _touches(dispatch: _Dispatch) -> list[Touch]:
    """The byte ranges that a dispatch reads and writes, named by host address where there is one.

    Two buffers over the same pages have the same addresses, so they count as the same memory.
    """
    touches: list[Touch] = []
    for access, bound in zip(dispatch.pipeline.kernel.access, dispatch.ranges, strict=True):
        address = bound.allocation.address
        space, base = (id(bound.allocation), 0) if address is None else (None, address)
        start = base + bound.offset
        touches.append((access, space, start, start + bound.nbytes))
    return touches


def _descriptor_sets(device: LogicalDevice, dispatches: Sequence[_Dispatch], keeps: list[object]) -> list[Any]:
    """One descriptor set for each dispatch, from a pool of just the right size."""
    count = sum(len(dispatch.ranges) for dispatch in dispatches)
    storage = lib.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER
    pool_info = struct(
        "VkDescriptorPoolCreateInfo",
        maxSets=len(dispatches),
        poolSizeCount=1,
        pPoolSizes=struct("VkDescriptorPoolSize", type=storage, descriptorCount=count),
    )
    pool = device.create("DescriptorPool", pool_info)
    keeps.append(pool)
    layouts = array("VkDescriptorSetLayout", [dispatch.pipeline.set_layout for dispatch in dispatches])
    info = struct(
        "VkDescriptorSetAllocateInfo",
        descriptorPool=pool.handle,
        descriptorSetCount=len(dispatches),
        pSetLayouts=layouts,
    )
    sets = ffi.new("VkDescriptorSet[]", len(dispatches))
    call("vkAllocateDescriptorSets", device.handle, info, sets)
    writes = [
        struct(
            "VkWriteDescriptorSet",
            dstSet=descriptors,
            dstBinding=i,
            descriptorCount=1,
            descriptorType=storage,
            pBufferInfo=struct(
                "VkDescriptorBufferInfo", buffer=bound.allocation.buffer, offset=bound.offset, range=bound.nbytes
            ),
        )
        for dispatch, descriptors in zip(dispatches, sets, strict=True)
        for i, bound in enumerate(dispatch.ranges)
    ]
    lib.vkUpdateDescriptorSets(device.handle, len(writes), array("VkWriteDescriptorSet", writes), 0, NULL)
    return list(sets)
