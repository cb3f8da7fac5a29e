"""The command queue: numbered command buffers, run in order, and a shared event that counts those that have ended."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from wasmetal.device.ahead import Ahead
from wasmetal.device.backend import Work
from wasmetal.device.metal.api import command_error, mtl, objc
from wasmetal.device.metal.physical import PhysicalDevice
from wasmetal.device.metal.recording import MetalRecording
from wasmetal.device.metal.residency import Residency
from wasmetal.device.metal.stream import Stream
from wasmetal.errors import DeviceError


class MetalWork(Work):
    """A committed command buffer. Metal does not keep alive what it uses: the device does (``device/queue.py``)."""

    def __init__(self, queue: CommandQueue, number: int, commands: Any) -> None:
        self._queue = queue
        self._number = number
        self._commands = commands

    def wait(self, seconds: float) -> bool:
        """Block for at most ``seconds``; return whether the command buffer has ended, successfully or not."""
        with objc.autorelease_pool():
            if self._queue.event.waitUntilSignaledValue_timeoutMS_(self._number, math.ceil(seconds * 1000)):
                self._commands.waitUntilCompleted()  # the event is signalled before the times are known
                return True
        return self.ended()

    def ended(self) -> bool:
        """Whether the command buffer has ended, successfully or not."""
        return bool(self._commands.status() >= mtl.MTLCommandBufferStatusCompleted)

    def result(self) -> tuple[float, DeviceError | None]:
        """Seconds of GPU time, and the error if the GPU failed. To be called once the command buffer has ended."""
        commands = self._commands
        with objc.autorelease_pool():
            if commands.status() == mtl.MTLCommandBufferStatusError:
                self._queue.event.setSignaledValue_(self._number)  # the GPU did not, and later work waits for it
                return 0.0, command_error(commands.error())
            return max(0.0, commands.GPUEndTime() - commands.GPUStartTime()), None  # virtual GPUs may not report times


class CommandQueue:
    """The queue of an open GPU. It lives until its work has ended, and its allocations are freed."""

    def __init__(self, physical: PhysicalDevice) -> None:
        with objc.autorelease_pool():
            self.event = physical.handle.newSharedEvent()
            """Set to the number of each command buffer as it ends."""
            self._queue = physical.handle.newCommandQueue()
            self._order = physical.handle.newEvent()
        if any(made is None for made in (self._queue, self.event, self._order)):
            raise DeviceError(f"{physical.name} made no command queue; close other programs that use the GPU")
        self._numbers = itertools.count(1)
        self.residency = Residency(physical, self._queue)
        self._submitted = 0
        self._last: MetalWork | None = None
        self._ahead: Ahead[tuple[object, Any]] = Ahead()  # of what command buffers use, and these

    def start(self, recordings: Sequence[MetalRecording]) -> MetalWork:
        """Run recordings in order, after all work started before."""
        self.residency.heartbeat.use()
        with objc.autorelease_pool():
            ready, busy = self._ahead.take(recordings), self._busy()
            commands = ready[-1] if ready and not busy else self._encode(recordings, busy)
            commands.encodeSignalEvent_value_(self.event, self._submitted + 1)
            commands.commit()
            self._submitted += 1
            self._last = MetalWork(self, self._submitted, commands)
            return self._last

    def prepare(self, recordings: Sequence[MetalRecording]) -> None:
        """Encode the next submission of recordings that are submitted over and over, while the GPU runs this one.

        Not with passes of a library: the event between these needs numbers that grow from one commit to the next.
        """
        if self._ahead.expects(recordings) and self._busy() and not any(recording.gemms for recording in recordings):
            with objc.autorelease_pool():
                self._ahead.put(recordings, ([each.uses for each in recordings], self._encode(recordings, False)))

    def _encode(self, recordings: Sequence[MetalRecording], wait: bool) -> Any:
        """A command buffer with these recordings, which must be committed next if it is to ``wait`` for the last."""
        if any(recording.gemms for recording in recordings):
            commands = self._queue.commandBuffer()  # only this one retains a library's temporary objects
        else:
            commands = self._queue.commandBufferWithUnretainedReferences()
        if wait:
            # Buffers are untracked, so Metal would let submissions overlap.
            commands.encodeWaitForEvent_value_(self.event, self._submitted)
        with closing(Stream(commands, self._order, self._numbers)) as stream:
            for recording in recordings:
                recording.encode(stream)
        return commands

    def _busy(self) -> bool:
        """Whether the last submission is still in flight."""
        return self._last is not None and not self._last.ended()
