"""A finished command list, as what is encoded for each submission."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wasmetal.device.backend import Dispatch
from wasmetal.device.hazards import Hazards
from wasmetal.device.metal.api import mtl
from wasmetal.device.metal.encoding import Command, Encoding
from wasmetal.device.metal.indirect import MOST_COMMANDS, IndirectEncoding
from wasmetal.device.metal.memory import MetalAllocation, allocate
from wasmetal.device.metal.pipeline import Pipeline
from wasmetal.device.metal.products import Product
from wasmetal.device.metal.queue import CommandQueue
from wasmetal.device.metal.stream import Stream

_SLOT = 256
"""Bytes from one parameter struct to the next: every GPU takes multiples of 256 as offsets of ``constant`` data."""

Dispatches = Sequence[Dispatch[MetalAllocation, Pipeline | Product]]


class MetalRecording:
    """The passes of a list: GEMMs by MPS, and the runs of kernels between them.

    Each run is an :class:`Encoding` or, if ``indirect``, an :class:`IndirectEncoding`.
    """

    def __init__(self, queue: CommandQueue, dispatches: Dispatches, indirect: bool = False) -> None:
        self.dispatches = len(dispatches)
        self.products = sum(isinstance(dispatch.code, Product) for dispatch in dispatches)
        self._indirect = indirect and len(dispatches) <= MOST_COMMANDS
        self._passes: list[Encoding | IndirectEncoding | Product] = []
        self._keeps: list[object] = [(dispatch.code, dispatch.ranges) for dispatch in dispatches]
        if dispatches:
            self._encode(queue, dispatches)

    def encode(self, stream: Stream) -> None:
        """Encode all passes."""
        for part in self._passes:
            part.encode(stream)

    def close(self) -> None:
        """Nothing: work in flight keeps the recording alive."""

    def _encode(self, queue: CommandQueue, dispatches: Dispatches) -> None:
        """Build the passes. One buffer, argument 0 of each kernel, holds every distinct parameter struct."""
        slots = {params: slot * _SLOT for slot, params in enumerate(dict.fromkeys(d.params for d in dispatches))}
        params = allocate(queue, len(slots) * _SLOT)
        self._keeps.append(params)
        for content, offset in slots.items():
            params.view()[offset : offset + len(content)] = np.frombuffer(content, np.uint8)
        commands: list[Command] = []
        for dispatch in dispatches:
            code = dispatch.code
            if isinstance(code, Product):  # a pass, ordered after all before it and before all after it
                self._end_run(queue, commands)
                self._passes.append(code)
                commands = []
                continue
            if not commands:
                hazards = Hazards()
            bound = [each.allocation.bind(each.offset, each.nbytes) for each in dispatch.ranges]
            arguments = [params.bind(slots[dispatch.params], _SLOT), *bound]
            sizes = mtl.MTLSizeMake(*dispatch.groups), mtl.MTLSizeMake(*code.kernel.threads)
            commands.append(Command(code.handle, arguments, sizes, hazards.needs_barrier(dispatch.touches())))
        self._end_run(queue, commands)

    def _end_run(self, queue: CommandQueue, commands: Sequence[Command]) -> None:
        if commands:
            run = IndirectEncoding(queue.physical, commands) if self._indirect else Encoding(commands)
            self._passes.append(run)
