"""Dispatches in an ``MTLIndirectCommandBuffer``: written once, and run by one call for each submission."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wasmetal.device.metal.api import NSMakeRange, mtl, objc
from wasmetal.device.metal.encoding import Command
from wasmetal.device.metal.physical import PhysicalDevice
from wasmetal.device.metal.stream import Stream
from wasmetal.errors import DeviceError

MOST_COMMANDS = 16384
"""The most commands of one buffer; longer lists are encoded again for each submission."""


class IndirectEncoding:
    """A run of commands like :class:`Encoding`. It keeps its pipelines and buffers alive."""

    def __init__(self, physical: PhysicalDevice, commands: Sequence[Command]) -> None:
        """Write the commands. Raises DeviceError if the GPU makes no indirect command buffer."""
        bound = [buffer for command in commands for buffer, _ in command.arguments]
        self._resources = list({id(buffer): buffer for buffer in bound}.values())
        self._pipelines = list({id(command.pipeline): command.pipeline for command in commands}.values())
        self._set_pipelines = physical.forgets_pipelines
        with objc.autorelease_pool():
            self._buffer = _make(physical, commands)
            for i, command in enumerate(commands):
                indirect = self._buffer.indirectComputeCommandAtIndex_(i)
                indirect.setComputePipelineState_(command.pipeline)
                for index, (buffer, offset) in enumerate(command.arguments):
                    indirect.setKernelBuffer_offset_atIndex_(buffer, offset, index)
                if command.barrier:
                    indirect.setBarrier()
                indirect.concurrentDispatchThreadgroups_threadsPerThreadgroup_(*command.sizes)
            self._range = NSMakeRange(0, len(commands))
            self._nothing = mtl.MTLSizeMake(0, 0, 0)

    def encode(self, stream: Stream) -> None:
        """Make the calls."""
        encoder = stream.encoder()
        if self._set_pipelines:
            for pipeline in self._pipelines:
                encoder.setComputePipelineState_(pipeline)
                encoder.dispatchThreadgroups_threadsPerThreadgroup_(self._nothing, self._nothing)
        usage = mtl.MTLResourceUsageRead | mtl.MTLResourceUsageWrite
        encoder.useResources_count_usage_(self._resources, len(self._resources), usage)
        encoder.executeCommandsInBuffer_withRange_(self._buffer, self._range)


def _make(physical: PhysicalDevice, commands: Sequence[Command]) -> Any:
    descriptor = mtl.MTLIndirectCommandBufferDescriptor.new()
    descriptor.setCommandTypes_(mtl.MTLIndirectCommandTypeConcurrentDispatch)
    descriptor.setInheritBuffers_(False)
    descriptor.setInheritPipelineState_(False)
    descriptor.setMaxKernelBufferBindCount_(max(len(command.arguments) for command in commands))
    make = physical.handle.newIndirectCommandBufferWithDescriptor_maxCommandCount_options_
    buffer = make(descriptor, len(commands), mtl.MTLResourceStorageModeShared)
    if buffer is None:
        raise DeviceError(f"{physical.name} made no indirect command buffer; unset WASMETAL_METAL_ICB")
    return buffer
