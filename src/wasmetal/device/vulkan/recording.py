"""A finished command list as one Vulkan command buffer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wasmetal.device.backend import Dispatch
from wasmetal.device.hazards import Hazards
from wasmetal.device.vulkan.api import NULL, call, ffi, lib, struct
from wasmetal.device.vulkan.commands import COMPUTE, Commands, kernel_barrier
from wasmetal.device.vulkan.logical import LogicalDevice, Owned
from wasmetal.device.vulkan.memory import VulkanAllocation
from wasmetal.device.vulkan.pipeline import Pipeline

_BIND_POINT: int = lib.VK_PIPELINE_BIND_POINT_COMPUTE
_STAGE: int = lib.VK_SHADER_STAGE_COMPUTE_BIT

Dispatches = Sequence[Dispatch[VulkanAllocation, Pipeline]]


class VulkanRecording:
    """A command buffer between two timestamps, ready to be submitted again and again."""

    def __init__(self, device: LogicalDevice, dispatches: Dispatches) -> None:
        self.dispatches = len(dispatches)
        self._device = device
        info = struct("VkQueryPoolCreateInfo", queryType=lib.VK_QUERY_TYPE_TIMESTAMP, queryCount=2)
        queries = self._queries = device.create("QueryPool", info)
        pool, sets = _descriptor_sets(device, dispatches) if dispatches else (None, [])

        def record(handle: Any) -> None:
            lib.vkCmdResetQueryPool(handle, queries.handle, 0, 2)
            lib.vkCmdWriteTimestamp(handle, COMPUTE, queries.handle, 0)
            _record(handle, dispatches, sets)
            lib.vkCmdWriteTimestamp(handle, COMPUTE, queries.handle, 1)

        self.commands = Commands(device, record, [queries, pool, *((each.code, each.ranges) for each in dispatches)])

    def timestamps(self) -> tuple[int, int]:
        """When the latest submission began and ended, in the device's ticks; only once it has ended."""
        stamps = ffi.new("uint64_t[2]")
        flags = lib.VK_QUERY_RESULT_64_BIT | lib.VK_QUERY_RESULT_WAIT_BIT
        call("vkGetQueryPoolResults", self._device.handle, self._queries.handle, 0, 2, 16, stamps, 8, flags)
        return stamps[0], stamps[1]

    def close(self) -> None:
        """Wait for a pending submission, so that what it uses can be freed."""
        self.commands.wait()


def _record(handle: Any, dispatches: Dispatches, sets: Sequence[Any]) -> None:
    hazards = Hazards()
    bound = None
    for dispatch, descriptors in zip(dispatches, sets, strict=True):
        pipeline, params = dispatch.code, dispatch.params
        if hazards.needs_barrier(dispatch.touches()):
            kernel_barrier(handle)
        if pipeline is not bound:
            lib.vkCmdBindPipeline(handle, _BIND_POINT, pipeline.handle)
            bound = pipeline
        lib.vkCmdBindDescriptorSets(handle, _BIND_POINT, pipeline.layout, 0, 1, [descriptors], 0, NULL)
        if params:
            lib.vkCmdPushConstants(handle, pipeline.layout, _STAGE, 0, len(params), ffi.from_buffer(params))
        lib.vkCmdDispatch(handle, *dispatch.groups)


def _descriptor_sets(device: LogicalDevice, dispatches: Dispatches) -> tuple[Owned, Sequence[Any]]:
    """One descriptor set for each dispatch, and the pool of just the right size that they are from."""
    count, storage = len(dispatches), lib.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER
    bound = [each for dispatch in dispatches for each in dispatch.ranges]
    size = struct("VkDescriptorPoolSize", type=storage, descriptorCount=len(bound))
    info = struct("VkDescriptorPoolCreateInfo", maxSets=count, poolSizeCount=1, pPoolSizes=size)
    pool = device.create("DescriptorPool", info)
    layouts = [dispatch.code.set_layout for dispatch in dispatches]
    info = struct(
        "VkDescriptorSetAllocateInfo", descriptorPool=pool.handle, descriptorSetCount=count, pSetLayouts=layouts
    )
    sets = ffi.new("VkDescriptorSet[]", count)
    call("vkAllocateDescriptorSets", device.handle, info, sets)
    places = ffi.new("VkDescriptorBufferInfo[]", [(each.allocation.buffer, each.offset, each.nbytes) for each in bound])
    slots = [(sets[i], binding) for i, each in enumerate(dispatches) for binding in range(len(each.ranges))]
    writes = [
        {
            "sType": lib.VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
            "dstSet": descriptors,
            "dstBinding": binding,
            "descriptorCount": 1,
            "descriptorType": storage,
            "pBufferInfo": places + i,
        }
        for i, (descriptors, binding) in enumerate(slots)
    ]
    lib.vkUpdateDescriptorSets(device.handle, len(writes), writes, 0, NULL)
    return pool, sets
