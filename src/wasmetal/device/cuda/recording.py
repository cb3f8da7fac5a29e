"""A finished command list: launches of kernels, and from its second submission on a graph of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wasmetal.device.backend import Dispatch, Recording
from wasmetal.device.cuda.api import QuickCall, call, cu, make
from wasmetal.device.cuda.context import Context
from wasmetal.device.cuda.cublas import CublasGemm
from wasmetal.device.cuda.launch import Launch
from wasmetal.device.cuda.memory import CudaAllocation
from wasmetal.device.cuda.pipeline import Pipeline
from wasmetal.device.hazards import Footprint

Code = Pipeline | CublasGemm
"""What computes a dispatch."""
CudaDispatch = Dispatch[CudaAllocation, Code]


class CudaRecording(Recording):
    """Launches, one after another.

    A graph costs more to make than its launches cost once, so it is made when a list turns out to be submitted again.
    """

    def __init__(self, context: Context, dispatches: Sequence[CudaDispatch]) -> None:
        self.dispatches = len(dispatches)
        self._context = context
        self._keeps = [(each.code, each.ranges) for each in dispatches]
        self._launches = [_launch(each, before) for before, each in zip((None, *dispatches), dispatches, strict=False)]
        self._started = False
        self._replay: QuickCall | None = None
        """Launches the graph."""

    def start(self, stream: Any, capturing: Any) -> None:
        """Start the kernels on a stream. ``capturing`` is another, for making the graph. One call at a time.

        The stream is the same each time.
        """
        if self._replay is None and self._started:
            self._replay = QuickCall("cuGraphLaunch", self._capture(capturing), int(stream))
        self._started = True
        if self._replay is None:
            for launch in self._launches:
                launch.start(stream)
        else:
            make(self._replay)

    def _capture(self, stream: Any) -> int:
        call("cuStreamBeginCapture", stream, cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        for launch in self._launches:
            launch.start(stream)
        graph = call("cuStreamEndCapture", stream)
        made = call("cuGraphInstantiate", graph, 0)
        self._context.release_with(self, "cuGraphExecDestroy", made)
        call("cuGraphDestroy", graph)
        return int(made)


def _launch(dispatch: CudaDispatch, before: CudaDispatch | None) -> Launch | CublasGemm:
    code = dispatch.code
    if isinstance(code, CublasGemm):
        return code
    return Launch(code, dispatch.ranges, dispatch.params, dispatch.groups, begins_early(code.ahead, dispatch, before))


def begins_early(ahead: Sequence[str] | None, dispatch: CudaDispatch, before: CudaDispatch | None) -> bool:
    """Whether a kernel may begin before the one before it has ended: if that writes nothing that is read at once.

    ``ahead``: the buffers that the kernel reads before it waits; None if it does not wait itself.
    What kernels before that one write has been written by then, since it has waited for them. What comes before the
    first kernel of a list is not known.
    """
    if ahead is None or before is None:
        return False
    earlier = Footprint()
    earlier.add(before.touches())
    buffers = zip(dispatch.kernel.buffers, dispatch.touches(), strict=True)
    return not earlier.conflicts(touch for buffer, touch in buffers if buffer.name in ahead)
