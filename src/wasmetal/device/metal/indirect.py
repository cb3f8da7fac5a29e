"""Dispatches in an ``MTLIndirectCommandBuffer``: written once, and run by one call for each submission."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wasmetal.device.metal.api import NSMakeRange, mtl, objc
from wasmetal.device.metal.physical import PhysicalDevice
from wasmetal.device.metal.stream import Stream
from wasmetal.errors import DeviceError

MOST_COMMANDS = 16384
"""The most commands of one buffer; longer lists are encoded again for each submission."""
_NOTHING: tuple[int, int, int] = (0, 0, 0)


@dataclass(slots=True)
class Command:
    """One dispatch."""

    pipeline: Any
    arguments: dict[int, tuple[Any, int]]
    groups: tuple[int, int, int]
    threads: tuple[int, int, int]
    barrier: bool


class IndirectEncoding:
    """A run of kernels like :class:`Encoding`. It keeps its pipelines and buffers alive."""

    def __init__(self, physical: PhysicalDevice) -> None:
        self._physical = physical
        self._commands: list[Command] = []
        self._pipeline: Any = None
        self._arguments: dict[int, tuple[Any, int]] = {}
        self._barrier = False

    def barrier(self) -> None:
        """Make all later dispatches wait for all earlier ones."""
        self._barrier = True

    def pipeline(self, pipeline: Any) -> None:
        """Set the pipeline of the dispatch that follows."""
        self._pipeline = pipeline
        self._arguments = {}

    def argument(self, index: int, buffer: Any, offset: int) -> None:
        """Set one buffer argument."""
        self._arguments[index] = buffer, offset

    def dispatch(self, groups: tuple[int, int, int], threads: tuple[int, int, int]) -> None:
        """Run the pipeline on a grid of groups."""
        self._commands.append(Command(self._pipeline, self._arguments, groups, threads, self._barrier))
        self._barrier = False

    def finish(self) -> None:
        """Write the commands. Raises DeviceError if the GPU makes no indirect command buffer."""
        with objc.autorelease_pool():
            self._buffer = self._make()
            for i, command in enumerate(self._commands):
                indirect = self._buffer.indirectComputeCommandAtIndex_(i)
                indirect.setComputePipelineState_(command.pipeline)
                for index, (buffer, offset) in command.arguments.items():
                    indirect.setKernelBuffer_offset_atIndex_(buffer, offset, index)
                if command.barrier:
                    indirect.setBarrier()
                sizes = mtl.MTLSizeMake(*command.groups), mtl.MTLSizeMake(*command.threads)
                indirect.concurrentDispatchThreadgroups_threadsPerThreadgroup_(*sizes)
            self._range = NSMakeRange(0, len(self._commands))
            self._nothing = mtl.MTLSizeMake(*_NOTHING)
        bound = [buffer for command in self._commands for buffer, _ in command.arguments.values()]
        self._resources = list({id(buffer): buffer for buffer in bound}.values())
        self._pipelines = list({id(command.pipeline): command.pipeline for command in self._commands}.values())

    def encode(self, stream: Stream) -> None:
        """Make the calls."""
        encoder = stream.encoder()
        if self._physical.forgets_pipelines:
            for pipeline in self._pipelines:
                encoder.setComputePipelineState_(pipeline)
                encoder.dispatchThreadgroups_threadsPerThreadgroup_(self._nothing, self._nothing)
        usage = mtl.MTLResourceUsageRead | mtl.MTLResourceUsageWrite
        encoder.useResources_count_usage_(self._resources, len(self._resources), usage)
        encoder.executeCommandsInBuffer_withRange_(self._buffer, self._range)

    def _make(self) -> Any:
        descriptor = mtl.MTLIndirectCommandBufferDescriptor.new()
        descriptor.setCommandTypes_(mtl.MTLIndirectCommandTypeConcurrentDispatch)
        descriptor.setInheritBuffers_(False)
        descriptor.setInheritPipelineState_(False)
        descriptor.setMaxKernelBufferBindCount_(1 + max(max(command.arguments) for command in self._commands))
        make = self._physical.handle.newIndirectCommandBufferWithDescriptor_maxCommandCount_options_
        buffer = make(descriptor, len(self._commands), mtl.MTLResourceStorageModeShared)
        if buffer is None:
            raise DeviceError(f"{self._physical.name} made no indirect command buffer; unset WASMETAL_METAL_ICB")
        return buffer
