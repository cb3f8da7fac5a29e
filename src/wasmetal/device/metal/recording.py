"""A finished command list, as what is encoded for each submission."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from wasmetal.device.backend import Dispatch, Recording
from wasmetal.device.hazards import Hazards
from wasmetal.device.metal.api import mtl
from wasmetal.device.metal.encoding import Command, Encoding
from wasmetal.device.metal.indirect import MOST_COMMANDS, IndirectEncoding
from wasmetal.device.metal.memory import MetalAllocation, allocate
from wasmetal.device.metal.pipeline import Pipeline
from wasmetal.device.metal.residency import Residency
from wasmetal.device.metal.stream import Pass, Stream

_SLOT = 256
"""Bytes from one parameter struct to the next: every GPU takes multiples of 256 as offsets of ``constant`` data."""

MetalDispatch = Dispatch[MetalAllocation, Pipeline | Pass]


class MetalRecording(Recording):
    """The passes of a list: GEMMs by a library, and the runs of kernels between them.

    Each run is an :class:`Encoding` or, if ``indirect``, an :class:`IndirectEncoding`.
    """

    def __init__(self, residency: Residency, dispatches: Sequence[MetalDispatch], indirect: bool = False) -> None:
        self.dispatches = len(dispatches)
        self.gemms = sum(not isinstance(dispatch.code, Pipeline) for dispatch in dispatches)
        """How many of the dispatches a library computes."""
        self._passes: list[Pass] = []
        self.uses: list[object] = [(dispatch.code, dispatch.ranges) for dispatch in dispatches]
        """Pipelines and memory. Command buffers do not keep them alive."""
        if dispatches:
            self._build(residency, dispatches, indirect and len(dispatches) <= MOST_COMMANDS)

    def encode(self, stream: Stream) -> None:
        """Encode all passes, after all that the stream has already."""
        stream.barrier()
        for part in self._passes:
            part.encode(stream)

    def _build(self, residency: Residency, dispatches: Sequence[MetalDispatch], indirect: bool) -> None:
        """Build the passes. One buffer, argument 0 of each kernel, holds every distinct parameter struct."""
        slots = {params: slot * _SLOT for slot, params in enumerate(dict.fromkeys(d.params for d in dispatches))}
        params = allocate(residency, len(slots) * _SLOT)
        self.uses.append(params)
        for content, offset in slots.items():
            params.view()[offset : offset + len(content)] = np.frombuffer(content, np.uint8)
        for _, run in groupby(dispatches, lambda dispatch: type(dispatch.code)):
            hazards = Hazards()
            commands: list[Command] = []
            for dispatch in run:
                code = dispatch.code
                if not isinstance(code, Pipeline):  # a pass, ordered after all before it and before all after it
                    self._passes.append(code)
                    continue
                bound = [each.allocation.bind(each.offset, each.nbytes) for each in dispatch.ranges]
                arguments = [params.bind(slots[dispatch.params], _SLOT), *bound]
                sizes = mtl.MTLSizeMake(*dispatch.groups), mtl.MTLSizeMake(*code.kernel.threads)
                commands.append(Command(code.handle, arguments, sizes, hazards.needs_barrier(dispatch.touches())))
            if commands:
                self._passes.append(IndirectEncoding(residency.physical, commands) if indirect else Encoding(commands))
