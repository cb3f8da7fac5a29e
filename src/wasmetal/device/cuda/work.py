"""Work on a stream, in flight between two events."""

from __future__ import annotations

import ctypes
from threading import get_ident

from wasmetal.device.backend import Work
from wasmetal.device.cuda.api import NOT_READY, QuickCall, cu, failure, make
from wasmetal.device.cuda.context import Context, Owned
from wasmetal.device.waiting import poll


class Timer:
    """Two events on a stream, before and after work."""

    def __init__(self, context: Context, stream: Owned) -> None:
        """Raises DeviceError."""
        self._keeps = stream, *(Owned(context, "Event", 0) for _ in range(2))
        on, begin, end = (int(owned.handle) for owned in self._keeps)
        self._milliseconds = ctypes.c_float()
        self.begin = QuickCall("cuEventRecord", begin, on)
        self.end = QuickCall("cuEventRecord", end, on)
        self.ask = QuickCall("cuEventQuery", end)
        """Its result is NOT_READY until the work has ended."""
        self._read = QuickCall("cuEventElapsedTime_v2", ctypes.byref(self._milliseconds), begin, end)

    def seconds(self) -> float:
        """Between the two, once the work has ended. Raises DeviceLostError."""
        make(self._read)
        return 1e-3 * self._milliseconds.value


class Timers:
    """Timers on a stream, to be used again."""

    def __init__(self, context: Context, stream: Owned) -> None:
        self._context, self._stream = context, stream
        self._free: list[Timer] = []  # single operations on a list are atomic in Python

    def take(self) -> Timer:
        """A timer that is not in use. Raises DeviceError."""
        try:
            return self._free.pop()
        except IndexError:
            return Timer(self._context, self._stream)

    def put_back(self, timer: Timer) -> None:
        """Let a timer be used again."""
        self._free.append(timer)


class CudaWork(Work):
    """What was started on the stream between the two events of a timer."""

    def __init__(self, context: Context, timers: Timers, timer: Timer) -> None:
        self._context = context
        self._timers = timers
        self._timer = timer
        self._thread = get_ident()

    def wait(self, seconds: float) -> bool:
        """Block for at most ``seconds``; return whether the work has ended. Raises DeviceLostError."""
        if get_ident() != self._thread:  # there it was made current to start the work
            self._context.use()
        return poll(self._ask, seconds, self.patient, self.due)

    def ended(self) -> bool:
        """Whether the work has ended. Raises DeviceLostError."""
        self._context.use()
        return self._ask()

    def _ask(self) -> bool:
        """The same, in a thread where the context is current."""
        result = self._timer.ask()
        if result and result != NOT_READY:
            raise failure(cu.CUresult(result), self._timer.ask.name)
        return not result

    def result(self) -> tuple[float, None]:
        """Seconds from the start of the first kernel to the end of the last, and no error. Raises DeviceLostError."""
        seconds = self._timer.seconds()
        self._timers.put_back(self._timer)
        return seconds, None
