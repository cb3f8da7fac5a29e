"""How a guest's lists are recorded: within a limit on work, in slices, and as segments that a device takes as a whole.

A device runs a dispatch to its end, whoever waits. So a guest's long ones are cut into slices of SLICE_SECONDS at most,
which keeps limits on time, and the turns of other guests, that exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from wasmetal.device.base import CommandList
from wasmetal.host.errno import Errno, Refusal
from wasmetal.host.fairness import SLICE
from wasmetal.host.metering import MeteredDevice
from wasmetal.ops import Recorder, Tensor
from wasmetal.ops.work import Part, Work

SLICE_SECONDS = 0.05
"""Device time of a slice, at the least speed that the device may have."""
LONGEST = 1 << 30
"""Operations of the longest group, which cannot be cut: a row of a softmax, a tile of a product, a head of attention.
"""
GROUP_SPEED = 2e9
"""The least operations per second of a group, which a single core of the device may run."""
SEGMENT = 16
"""Most dispatches of a segment."""
DISPATCH = 1 << 15
"""Operations that a dispatch costs besides its work."""


@dataclass(eq=False, slots=True)
class Segment:
    """Dispatches that are recorded as one list of the device."""

    commands: CommandList
    dispatches: int = 0
    work: int = 0
    """In operations, those for each dispatch and for idle cores included."""


class GuestRecorder(Recorder):
    """Records one list of a guest's."""

    def __init__(self, device: MeteredDevice, limit: int | None, look: Callable[[], None]) -> None:
        """``limit``: most operations of the list. ``look`` is called from time to time, and may raise."""
        info = device.info
        self.segments = [Segment(device.record())]
        super().__init__(info, self.segments[0].commands)
        self.slice = SLICE_SECONDS * info.operations_per_second
        self._cores = max(1.0, info.operations_per_second / GROUP_SPEED)
        self._longest = int(LONGEST * self._cores)
        self._full = SLICE * info.operations_per_second
        self.work = 0
        """Operations of what has been recorded so far."""
        self._device = device
        self._limit = limit
        self._look = look

    def parts(self, op: str, work: Work) -> Iterable[Part]:
        """Slices of an op. Raises TOOBIG if the list is over the limit on work."""
        total = work.total
        self.work += total
        if self._limit is not None and self.work > self._limit:
            raise Refusal(Errno.TOOBIG, f"{op} of {total} operations; limit reached: {self._limit} in a list")
        return super().parts(op, work)

    def dispatch(self, name: str, tensors: Sequence[Tensor], groups: int, work: int, /, **fields: float) -> None:
        """Record a slice, in the segment that has room for it. Raises TOOBIG if it is too long and cannot be cut."""
        if groups < self._cores:
            work = int(work * self._cores / max(1, groups))  # it takes as long as with a group for each core
        if work > self._longest:
            what = f"{name}: {work} operations that cannot be cut; at most {self._longest} can: use shorter rows"
            raise Refusal(Errno.TOOBIG, what)
        segment = self.segments[-1]
        if segment.dispatches == SEGMENT or segment.work > self._full:
            self._look()
            segment.commands.finish()
            segment = Segment(self._device.record())
            self.segments.append(segment)
            self.commands = segment.commands
        super().dispatch(name, tensors, groups, work, **fields)
        segment.dispatches += 1
        segment.work += work + DISPATCH

    def finish(self) -> list[Segment]:
        """End recording; return what was recorded."""
        self.commands.finish()
        return self.segments

    def close(self) -> None:
        """Release what was recorded."""
        for segment in self.segments:
            segment.commands.close()
