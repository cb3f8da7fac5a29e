"""Calls to an ``MTLComputeCommandEncoder``, prepared once and made for every submission.

A Metal command buffer runs only once, so a list is encoded again for each submission. The arguments of all calls are
made when the list is finished, and calls that would set what is already set are left out.
"""

from __future__ import annotations

from typing import Any

from wasmetal.device.metal.api import mtl
from wasmetal.device.metal.stream import Stream


class Encoding:
    """The calls for a run of kernels, for an encoder that runs dispatches concurrently."""

    def __init__(self) -> None:
        self._calls: list[tuple[str, tuple[Any, ...]]] = []
        self._pipeline: Any = None
        self._arguments: dict[int, tuple[Any, int]] = {}

    def barrier(self) -> None:
        """Make all later dispatches wait for all earlier ones."""
        self._call("memoryBarrierWithScope_", mtl.MTLBarrierScopeBuffers)

    def pipeline(self, pipeline: Any) -> None:
        """Set the pipeline of the dispatches that follow."""
        if self._pipeline is not pipeline:
            self._call("setComputePipelineState_", pipeline)
            self._pipeline = pipeline

    def argument(self, index: int, buffer: Any, offset: int) -> None:
        """Set one buffer argument."""
        before, before_offset = self._arguments.get(index, (None, 0))
        if before is not buffer:
            self._call("setBuffer_offset_atIndex_", buffer, offset, index)
        elif before_offset != offset:
            self._call("setBufferOffset_atIndex_", offset, index)
        self._arguments[index] = buffer, offset

    def dispatch(self, groups: tuple[int, int, int], threads: tuple[int, int, int]) -> None:
        """Run the pipeline on a grid of groups."""
        sizes = mtl.MTLSizeMake(*groups), mtl.MTLSizeMake(*threads)
        self._call("dispatchThreadgroups_threadsPerThreadgroup_", *sizes)

    def encode(self, stream: Stream) -> None:
        """Make the calls."""
        encoder = stream.encoder()
        methods = {name: getattr(encoder, name) for name, _ in self._calls}
        for name, arguments in self._calls:
            methods[name](*arguments)

    def _call(self, method: str, *arguments: Any) -> None:
        self._calls.append((method, arguments))
