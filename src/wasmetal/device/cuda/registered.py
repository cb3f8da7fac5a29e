"""Host pages that GPUs may use, registered with the driver.

The driver refuses to register a page twice, but ranges that are wrapped may overlap. So pages are registered in
segments without overlap, each for as long as something uses a part of it. Registrations are valid for all GPUs of the
process, at the addresses that the pages have on the host.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass

from wasmetal.device.base import Bytes
from wasmetal.device.cuda.api import call, cu
from wasmetal.device.cuda.context import Context
from wasmetal.device.release import on_release

_FLAGS = cu.CU_MEMHOSTREGISTER_PORTABLE | cu.CU_MEMHOSTREGISTER_DEVICEMAP


@dataclass(eq=False)
class _Segment:
    """Pages that are registered together."""

    start: int
    stop: int
    context: Context
    pages: Bytes
    """Keeps the pages mapped."""
    users: int = 0


class Registry:
    """The registered segments of this process. Callable from any thread."""

    def __init__(self) -> None:
        self._segments: list[_Segment] = []
        """In ascending order, without overlap."""
        self._lock = threading.Lock()
        self._dropped: deque[list[_Segment]] = deque()
        """What finalizers, which take no locks, have let go of."""

    def register(self, owner: object, context: Context, pages: Bytes) -> None:
        """Have pages registered until nothing refers to ``owner``. Raises WrapRefusedError, OutOfDeviceMemoryError."""
        context.use()
        with self._lock:
            self._settle()
            used = self._use(context, pages)
        on_release(owner, self._drop, used)

    def _use(self, context: Context, pages: Bytes) -> list[_Segment]:
        """The segments that the pages lie in, those that are missing made."""
        start = pages.ctypes.data
        stop, used = start + pages.size, []
        try:
            while start < stop:
                at = bisect_right(self._segments, start, key=lambda segment: segment.start)
                if at and self._segments[at - 1].stop > start:
                    segment = self._segments[at - 1]
                else:
                    end = min(stop, self._segments[at].start) if at < len(self._segments) else stop
                    call("cuMemHostRegister", start, end - start, _FLAGS)
                    segment = _Segment(start, end, context, pages)
                    self._segments.insert(at, segment)
                segment.users += 1
                used.append(segment)
                start = segment.stop
        except BaseException:
            self._dropped.append(used)
            self._settle()
            raise
        return used

    def _drop(self, used: list[_Segment]) -> None:
        self._dropped.append(used)
        if self._lock.acquire(blocking=False):  # it may be this very thread that holds it
            try:
                self._settle()
            finally:
                self._lock.release()

    def _settle(self) -> None:
        """Unregister what has been let go of and nothing else uses."""
        while self._dropped:
            for segment in self._dropped.popleft():
                segment.users -= 1
                if not segment.users:
                    self._segments.remove(segment)
                    segment.context.release(call, "cuMemHostUnregister", segment.start)


registry = Registry()
