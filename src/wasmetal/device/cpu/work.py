"""Submissions on the CPU: the threads that wait for a submission run its kernels."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import chain, groupby
from typing import cast

import numpy as np

from wasmetal.device.backend import Dispatch, Recording, Work
from wasmetal.device.cpu.library import Call, Calls, Library
from wasmetal.device.cpu.memory import Pages
from wasmetal.device.hazards import Footprint
from wasmetal.errors import DeviceError

Step = Callable[[], object] | Call
"""A NumPy kernel bound to typed views of its buffers, or a compiled one."""


class CpuRecording(Recording):
    """Kernels, to be run in order: NumPy's one by one, and compiled ones as many at a time as follow each other."""

    def __init__(self, dispatches: Sequence[Dispatch[Pages, Step]], library: Library | None = None) -> None:
        self.dispatches = len(dispatches)
        self.steps: list[Callable[[], object] | Calls] = []
        self.closed = False
        self.stop = ctypes.c_uint8(0)
        """Not 0 to keep compiled kernels that have not begun from running."""
        self._dispatches = list(dispatches)
        for native, group in groupby([dispatch.code for dispatch in dispatches], lambda step: isinstance(step, tuple)):
            if native and library:
                self.steps.append(Calls(library, cast(list[Call], list(group)), self.stop))
            else:
                self.steps += cast(Iterator[Callable[[], object]], group)

    @cached_property
    def footprint(self) -> Footprint:
        """The byte ranges that the kernels read and write."""
        footprint = Footprint()
        for dispatch in self._dispatches:
            footprint.add(dispatch.touches())
        return footprint

    def close(self) -> None:
        """Drop the kernels; those that have not run yet never run."""
        self.closed = True
        self.stop.value = 1
        self.steps.clear()
        self._dispatches.clear()


class _Thread(threading.local):
    """The calling thread."""

    def __init__(self) -> None:
        self.token = object()
        """Equal to no other thread's. (Its number will not do: a later thread may get the same one.)"""


_this = _Thread()


class CpuWork(Work):
    """Recordings that run in the threads that wait for them, after the work that they depend on.

    Work depends on earlier work of the same thread, and on earlier work with a hazard on the same bytes. Independent
    work runs concurrently in other threads, so a short submission does not wait for another thread's long one.
    """

    def __init__(self, recordings: Sequence[CpuRecording], pending: Sequence[CpuWork]) -> None:
        """``pending``: earlier work that has not ended, in order."""
        self._recordings = recordings
        for recording in recordings:
            recording.stop.value = 0
        self._steps = chain.from_iterable([recording.steps for recording in recordings])
        self._begun: Calls | None = None
        """Compiled kernels that have run in part, up to ``_next``."""
        self._next = 0
        self._thread = _this.token
        self._needs: Sequence[CpuWork] = self._find_needs(pending) if pending else ()
        self._lock = threading.Lock()
        self._left = sum([recording.dispatches for recording in recordings])
        self._seconds = 0.0
        self._error: Exception | None = None
        self._done = False
        self._dropped = False

    def wait(self, seconds: float) -> bool:
        """Run kernels for about ``seconds``, but at least one; return whether all have run."""
        end = time.perf_counter() + seconds
        for needed in self._needs:
            if not needed._done and not needed.wait(max(0.0, end - time.perf_counter())):
                return False
        # Another thread may be running the kernels: wait for it. A first try without a timeout is four times as fast.
        acquired = self._lock.acquire(blocking=False)
        if not acquired and not self._lock.acquire(timeout=max(0.0, end - time.perf_counter())):
            return False
        try:
            return self._done or self._run(end)
        finally:
            self._lock.release()

    def ended(self) -> bool:
        """Whether every kernel has run, or was dropped and none is running."""
        return self._done or (
            not self._lock.locked() and (self._dropped or all(recording.closed for recording in self._recordings))
        )

    def result(self) -> tuple[float, Exception | None]:
        """Seconds that the kernels took, and the error that one of them raised."""
        self._needs = ()
        if self._error is None and self._left:
            self._error = DeviceError(
                "the submission was abandoned before all of it had run"
                if self._dropped
                else "a command list was closed before it had run; wait for the submission before closing it"
            )
        return self._seconds, self._error

    def drop(self) -> None:
        """Drop the kernels that have not run yet."""
        self._dropped = True
        for recording in self._recordings:
            recording.stop.value = 1

    def _run(self, end: float) -> bool:
        begin = time.perf_counter()
        try:
            with np.errstate(all="ignore"):  # infinities and NaNs are ordinary values to a kernel
                while not self._dropped and (step := self._begun or next(self._steps, None)):
                    if isinstance(step, Calls):
                        self._run_calls(step, end - time.perf_counter())
                    else:
                        step()
                        self._left -= 1
                    if time.perf_counter() >= end:
                        return False
        except Exception as error:
            self._error = error
        except BaseException:  # Ctrl-C: the kernel may have run in part
            self._error = DeviceError("the submission was interrupted during a kernel; submit it again")
            self._done = True
            raise
        finally:
            self._seconds += time.perf_counter() - begin
        self._done = True
        return True

    def _run_calls(self, calls: Calls, seconds: float) -> None:
        reached = calls.run(self._next, seconds)
        self._left -= reached - self._next
        self._next = reached % calls.count
        self._begun = calls if self._next and not calls.stop.value else None

    def _find_needs(self, pending: Sequence[CpuWork]) -> list[CpuWork]:
        needs: list[CpuWork] = []
        for earlier in reversed(pending):
            if any(earlier in later._needs for later in needs) or self._depends(earlier):
                needs.insert(0, earlier)
        return needs

    def _depends(self, earlier: CpuWork) -> bool:
        return self._thread == earlier._thread or any(
            before.footprint.conflicts(after.footprint) for before in earlier._recordings for after in self._recordings
        )
