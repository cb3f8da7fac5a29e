"""A finished command list: launches of kernels, and from its second submission on a graph of them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from wasmetal.device.backend import Dispatch, Recording
from wasmetal.device.cuda.api import call, cu
from wasmetal.device.cuda.context import Context
from wasmetal.device.cuda.memory import CudaAllocation
from wasmetal.device.cuda.pipeline import Pipeline


class CudaRecording(Recording):
    """Launches, one after another.

    A graph costs more to make than its launches cost once, so it is made when a list turns out to be submitted again.
    """

    def __init__(self, context: Context, dispatches: Sequence[Dispatch[CudaAllocation, Pipeline]]) -> None:
        self.dispatches = len(dispatches)
        self._context = context
        self._keeps = [(each.code, each.ranges) for each in dispatches]
        self._launches = [_Launch(each) for each in dispatches]
        self._started = False
        self._graph: Any = None

    def start(self, stream: Any, capturing: Any) -> None:
        """Start the kernels on a stream. ``capturing`` is another, for making the graph. One call at a time."""
        if self._graph is None and self._started:
            self._graph = self._capture(capturing)
        self._started = True
        if self._graph is None:
            for launch in self._launches:
                launch.start(stream)
        else:
            call("cuGraphLaunch", self._graph, stream)

    def _capture(self, stream: Any) -> Any:
        call("cuStreamBeginCapture", stream, cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        for launch in self._launches:
            launch.start(stream)
        graph = call("cuStreamEndCapture", stream)
        made = call("cuGraphInstantiate", graph, 0)
        self._context.release_with(self, "cuGraphExecDestroy", made)
        call("cuGraphDestroy", graph)
        return made


class _Launch:
    """The arguments of ``cuLaunchKernel``, ready to be passed."""

    def __init__(self, dispatch: Dispatch[CudaAllocation, Pipeline]) -> None:
        """A kernel takes the address of each binding, then its struct of parameters."""
        addresses = [(bound.allocation.device_address or 0) + bound.offset for bound in dispatch.ranges]
        places = (ctypes.c_uint64 * len(addresses))(*addresses)
        struct = ctypes.create_string_buffer(dispatch.params, max(1, len(dispatch.params)))
        starts = [ctypes.addressof(places) + 8 * i for i in range(len(addresses))]
        arguments = (ctypes.c_uint64 * (len(starts) + 1))(*starts, ctypes.addressof(struct))
        self._keeps = places, struct, arguments
        self._function = dispatch.code.function
        across, down, deep = dispatch.groups
        self._shape = across, down, deep * dispatch.code.spread, *dispatch.code.threads, 0
        self._arguments = ctypes.addressof(arguments)

    def start(self, stream: Any) -> None:
        call("cuLaunchKernel", self._function, *self._shape, stream, self._arguments, 0)
