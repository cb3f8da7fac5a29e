"""Work on a stream, in flight between two events."""

from __future__ import annotations

from wasmetal.device.backend import Work
from wasmetal.device.cuda.api import NOT_READY, call, cu, failure, quick_result
from wasmetal.device.cuda.context import Context, Owned
from wasmetal.device.waiting import poll


class Events:
    """Events of a context, to be used again."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._free: list[Owned] = []  # single operations on a list are atomic in Python

    def take(self) -> Owned:
        """An event that is not in use."""
        try:
            return self._free.pop()
        except IndexError:
            return Owned(self._context, "Event", 0)

    def put_back(self, *events: Owned) -> None:
        """Let events be used again."""
        self._free += events


class CudaWork(Work):
    """What was started on the stream between two events."""

    def __init__(self, context: Context, events: Events, begin: Owned, end: Owned) -> None:
        self._context = context
        self._events = events
        self._between = begin, end
        self._end = int(end.handle)

    def wait(self, seconds: float) -> bool:
        """Block for at most ``seconds``; return whether the work has ended. Raises DeviceLostError."""
        self._context.use()
        return poll(self._ask, seconds, self.patient, self.due)

    def ended(self) -> bool:
        """Whether the work has ended. Raises DeviceLostError."""
        self._context.use()
        return self._ask()

    def _ask(self) -> bool:
        """The same, in a thread where the context is current."""
        result = quick_result("cuEventQuery", self._end)
        if result == NOT_READY:
            return False
        if result:
            raise failure(cu.CUresult(result), "cuEventQuery")
        return True

    def result(self) -> tuple[float, None]:
        """Seconds from the start of the first kernel to the end of the last, and no error. Raises DeviceLostError."""
        begin, end = self._between
        seconds = 1e-3 * call("cuEventElapsedTime", begin.handle, end.handle)
        self._events.put_back(begin, end)
        return seconds, None
