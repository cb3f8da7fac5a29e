"""Calls to an ``MTLComputeCommandEncoder``, prepared once and made for every submission.

A Metal command buffer runs only once, so a list is encoded again for each submission. The arguments of all calls are
made when the list is finished, and calls that would set what is already set are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from wasmetal.device.metal.api import mtl
from wasmetal.device.metal.stream import Stream


@dataclass(frozen=True, slots=True)
class Command:
    """One dispatch in Metal's terms."""

    pipeline: Any
    arguments: Sequence[tuple[Any, int]]
    """The ``MTLBuffer`` and the offset in bytes of each buffer argument, from argument 0 on."""
    sizes: tuple[Any, Any]
    """Groups, and threads per group, as ``MTLSize``."""
    barrier: bool
    """Whether it must wait for the commands before it."""


class Encoding:
    """A run of commands as a flat sequence of calls, for an encoder that runs dispatches concurrently."""

    def __init__(self, commands: Sequence[Command]) -> None:
        self._calls = list(_calls(commands))

    def encode(self, stream: Stream) -> None:
        """Make the calls."""
        encoder = stream.encoder()
        methods = {name: getattr(encoder, name) for name, _ in self._calls}
        for name, arguments in self._calls:
            methods[name](*arguments)


def _calls(commands: Sequence[Command]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    pipeline: Any = None
    bound: dict[int, tuple[Any, int]] = {}
    for command in commands:
        if command.barrier:
            yield "memoryBarrierWithScope_", (mtl.MTLBarrierScopeBuffers,)
        if command.pipeline is not pipeline:
            yield "setComputePipelineState_", (command.pipeline,)
            pipeline = command.pipeline
        for index, (buffer, offset) in enumerate(command.arguments):
            before, before_offset = bound.get(index, (None, 0))
            if before is not buffer:
                yield "setBuffer_offset_atIndex_", (buffer, offset, index)
            elif before_offset != offset:
                yield "setBufferOffset_atIndex_", (offset, index)
            bound[index] = buffer, offset
        yield "dispatchThreadgroups_threadsPerThreadgroup_", command.sizes
