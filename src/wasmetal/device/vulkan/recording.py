"""A finished command list as one Vulkan command buffer."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from wasmetal.device.backend import Dispatch
from wasmetal.device.hazards import Hazards
from wasmetal.device.vulkan.api import NULL, array, call, ffi, lib, struct
from wasmetal.device.vulkan.commandbuffer import COMPUTE, CommandBuffer
from wasmetal.device.vulkan.logical import LogicalDevice
from wasmetal.device.vulkan.memory import VulkanAllocation
from wasmetal.device.vulkan.pipeline import Pipeline
from wasmetal.errors import DeviceLostError

_BIND_POINT: int = lib.VK_PIPELINE_BIND_POINT_COMPUTE
_STAGE: int = lib.VK_SHADER_STAGE_COMPUTE_BIT

Dispatches = Sequence[Dispatch[VulkanAllocation, Pipeline]]


class VulkanRecording:
    """A command buffer between two timestamps, ready to be submitted again and again."""

    def __init__(self, device: LogicalDevice, dispatches: Dispatches) -> None:
        self.dispatches = len(dispatches)
        self.commands = CommandBuffer(device)
        query_info = struct("VkQueryPoolCreateInfo", queryType=lib.VK_QUERY_TYPE_TIMESTAMP, queryCount=2)
        self._queries = device.create("QueryPool", query_info)
        self._stamps = ffi.new("uint64_t[2]")
        keeps: list[object] = [self._queries]
        sets = _descriptor_sets(device, dispatches, keeps) if dispatches else []
        for dispatch in dispatches:
            keeps += [dispatch.code, *(bound.allocation for bound in dispatch.ranges)]
        self.commands.keeps[:] = keeps
        self.commands.begin()
        handle = self.commands.handle
        lib.vkCmdResetQueryPool(handle, self._queries.handle, 0, 2)
        lib.vkCmdWriteTimestamp(handle, COMPUTE, self._queries.handle, 0)
        self._record(dispatches, sets)
        lib.vkCmdWriteTimestamp(handle, COMPUTE, self._queries.handle, 1)
        self.commands.end()

    def timestamps(self) -> tuple[int, int]:
        """When the latest submission began and ended, in the device's ticks; only once it has ended."""
        flags = lib.VK_QUERY_RESULT_64_BIT | lib.VK_QUERY_RESULT_WAIT_BIT
        device, queries = self.commands.device, self._queries.handle
        call("vkGetQueryPoolResults", device.handle, queries, 0, 2, 16, self._stamps, 8, flags)
        return self._stamps[0], self._stamps[1]

    def close(self) -> None:
        """Wait for a pending submission, so that what it uses can be freed."""
        with contextlib.suppress(DeviceLostError):  # a lost device is no longer at work
            self.commands.wait()

    def _record(self, dispatches: Dispatches, sets: Sequence[Any]) -> None:
        handle = self.commands.handle
        hazards = Hazards()
        bound = None
        for dispatch, descriptors in zip(dispatches, sets, strict=True):
            pipeline = dispatch.code
            if hazards.needs_barrier(dispatch.touches()):
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


def _descriptor_sets(device: LogicalDevice, dispatches: Dispatches, keeps: list[object]) -> list[Any]:
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
    layouts = array("VkDescriptorSetLayout", [dispatch.code.set_layout for dispatch in dispatches])
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
