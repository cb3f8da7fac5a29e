"""A finished command list as one Vulkan command buffer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from wasmetal.device.backend import Dispatch, Recording
from wasmetal.device.hazards import Hazards
from wasmetal.device.vulkan.api import call, ffi, lib, struct
from wasmetal.device.vulkan.commands import BY_KERNELS, COMPUTE, Commands, barrier
from wasmetal.device.vulkan.logical import LogicalDevice
from wasmetal.device.vulkan.memory import VulkanAllocation
from wasmetal.device.vulkan.pipeline import Pipeline

_BIND_POINT: int = lib.VK_PIPELINE_BIND_POINT_COMPUTE

Dispatches = Sequence[Dispatch[VulkanAllocation, Pipeline]]


class VulkanRecording(Recording):
    """A command buffer with a timestamp before and after its kernels, to be submitted any number of times."""

    def __init__(self, device: LogicalDevice, dispatches: Dispatches) -> None:
        self.dispatches = len(dispatches)
        self._device = device
        info = struct("VkQueryPoolCreateInfo", queryType=lib.VK_QUERY_TYPE_TIMESTAMP, queryCount=2)
        queries = self._queries = device.create("QueryPool", info)

        def record(handle: Any) -> None:
            lib.vkCmdResetQueryPool(handle, queries.handle, 0, 2)
            lib.vkCmdWriteTimestamp(handle, COMPUTE, queries.handle, 0)
            hazards = Hazards()
            for dispatch in dispatches:
                if hazards.needs_barrier(dispatch.touches()):
                    barrier(handle, COMPUTE, COMPUTE, BY_KERNELS)
                _record(device, handle, dispatch)
            lib.vkCmdWriteTimestamp(handle, COMPUTE, queries.handle, 1)

        self.commands = Commands(device, record, [queries, *((each.code, each.ranges) for each in dispatches)])

    @cached_property
    def mark(self) -> VulkanRecording:
        """Nothing but timestamps: to be submitted before this recording if that runs several times."""
        return VulkanRecording(self._device, ())

    def timestamps(self) -> tuple[int, int]:
        """Begin and end of the latest submission, in ticks. Called once it has ended. Raises DeviceLostError."""
        stamps = ffi.new("uint64_t[2]")
        flags = lib.VK_QUERY_RESULT_64_BIT | lib.VK_QUERY_RESULT_WAIT_BIT
        call("vkGetQueryPoolResults", self._device.handle, self._queries.handle, 0, 2, 16, stamps, 8, flags)
        return stamps[0], stamps[1]


def _record(device: LogicalDevice, handle: Any, dispatch: Dispatch[VulkanAllocation, Pipeline]) -> None:
    pipeline, params, count = dispatch.code, dispatch.params, len(dispatch.ranges)
    places = [(bound.allocation.buffer.handle, bound.offset, bound.nbytes) for bound in dispatch.ranges]
    infos = ffi.new("VkDescriptorBufferInfo[]", places)
    kind, storage = lib.VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET, lib.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER
    write = {"sType": kind, "descriptorCount": 1, "descriptorType": storage}
    writes = [{**write, "dstBinding": i, "pBufferInfo": infos + i} for i in range(count)]
    layout = pipeline.layout.handle
    lib.vkCmdBindPipeline(handle, _BIND_POINT, pipeline.pipeline.handle)
    device.push_descriptors(handle, _BIND_POINT, layout, 0, count, writes)
    lib.vkCmdPushConstants(handle, layout, lib.VK_SHADER_STAGE_COMPUTE_BIT, 0, len(params), ffi.from_buffer(params))
    lib.vkCmdDispatch(handle, *dispatch.groups)
