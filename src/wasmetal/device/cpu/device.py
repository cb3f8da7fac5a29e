"""The CPU as a device: buffers are pages, kernels are NumPy functions, a submission runs when it is waited for."""

from __future__ import annotations

import math
import mmap
import os
import platform
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from types import TracebackType
from typing import Any, Self, cast

import numpy as np

from wasmetal.counters import Counters
from wasmetal.device.base import Binding, Buffer, Bytes, CommandList, DeviceInfo, HostPages, MemoryKind
from wasmetal.errors import DeviceError, DeviceTimeoutError, OutOfDeviceMemoryError
from wasmetal.kernels.catalog import Kernel
from wasmetal.kernels.reference import KERNELS


class CpuBuffer:
    """Page-aligned host memory: the device's own, or wrapped pages. Recorded lists keep the bytes alive."""

    def __init__(self, data: Bytes, kind: MemoryKind, pages: HostPages | None = None):
        self.kind = kind
        self.nbytes = data.size
        self.address: int | None = data.ctypes.data
        self.device_address = self.address
        self._data: Bytes | None = data
        self._pages = pages

    def view(self) -> Bytes:
        """The bytes themselves. Raises DeviceError once closed."""
        if self._data is None:
            raise DeviceError("this buffer is closed; keep it open for as long as it is used")
        return self._data

    def close(self) -> None:
        """Let go of the bytes; they are freed when no view or command list is left on them."""
        self._data = self._pages = None


class CpuCommandList:
    """Closures over typed views of the bound bytes, made once when recorded."""

    def __init__(self, counters: Counters):
        self._counters = counters
        self._steps: list[Callable[[], object]] = []
        self._finished = False

    def dispatch(
        self, kernel: Kernel, bindings: Sequence[Binding], params: bytes, groups: tuple[int, int, int]
    ) -> None:
        """Record one kernel. The grid is of no use here: a NumPy kernel does all of the work in one call."""
        if self._finished:
            raise DeviceError("this command list is finished; record a new one")
        arrays = [_bytes(binding.buffer, binding.offset, binding.nbytes) for binding in bindings]
        self._steps.append(KERNELS[kernel.name](kernel.unpack(params), *arrays))

    def finish(self) -> None:
        """End recording."""
        self._finished = True

    def close(self) -> None:
        """Forget the kernels and let go of their buffers."""
        self._steps.clear()

    def run(self) -> Iterator[None]:
        """Run the kernels in order, one at each step. Raises DeviceError where the list is not finished."""
        if not self._finished:
            raise DeviceError("this command list is not finished; finish it before submitting it")
        return self._run()

    def _run(self) -> Iterator[None]:
        for step in self._steps:
            step()
            self._counters.dispatches += 1
            yield


class CpuSubmission:
    """Kernels that run when they, or some submitted later, are waited for. A list that is closed by then does not."""

    def __init__(self, queue: CpuQueue, lists: Sequence[CpuCommandList]):
        self.seconds = 0.0
        """Time spent on the kernels so far."""
        self.dispatches = 0
        """Kernels run so far."""
        self.error: Exception | None = None
        """What a kernel raised, which ends the submission."""
        self._queue = queue
        self._kernels = chain.from_iterable([commands.run() for commands in lists])

    def wait(self, timeout: float | None = None) -> float:
        """Run what has not run yet, for about so many seconds; return the seconds that it took.

        Raises DeviceTimeoutError between two kernels; the next wait goes on from there.
        """
        self._queue.run(self, math.inf if timeout is None else time.monotonic() + timeout)
        if self.error:
            raise self.error
        return self.seconds

    def run(self, end: float) -> None:
        """Run kernels until none is left, or the time is up: DeviceTimeoutError."""
        begin = time.perf_counter()
        try:
            for _ in self._kernels:
                self.dispatches += 1
                if time.monotonic() >= end:
                    raise DeviceTimeoutError("the kernels did not end in time; wait again to go on")
        finally:
            self.seconds += time.perf_counter() - begin


class CpuQueue:
    """Submissions that have not ended, in order. One thread at a time runs kernels."""

    def __init__(self, counters: Counters):
        self._counters = counters
        self._waiting: deque[CpuSubmission] = deque()
        self._lock = threading.Lock()

    def add(self, lists: Sequence[CpuCommandList]) -> CpuSubmission:
        """A new submission, behind all others."""
        submission = CpuSubmission(self, lists)
        self._counters.submits += 1
        self._waiting.append(submission)
        return submission

    def run(self, last: CpuSubmission, end: float) -> None:
        """Run submissions up to this one. Infinities and NaN are values like any other to a kernel."""
        with self._lock, np.errstate(all="ignore"):
            while last in self._waiting:
                first = self._waiting[0]
                before = first.seconds
                try:
                    first.run(end)
                except DeviceTimeoutError:
                    raise
                except Exception as error:
                    first.error = error
                finally:
                    self._counters.device_seconds += first.seconds - before
                self._waiting.popleft()


class CpuDevice:
    """The host's processor. Shared and device memory are the same, so nothing is ever copied to be computed on."""

    def __init__(self) -> None:
        self.counters = Counters()
        self._queue = CpuQueue(self.counters)
        self.info = DeviceInfo(
            name=_processor(),
            backend="cpu",
            index=0,
            driver=f"NumPy {np.__version__}",
            unified=True,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            page_alignment=mmap.PAGESIZE,
            offset_alignment=16,
            max_binding_bytes=2**32,
            subgroup_size=1,
            features=("host pages in place", f"{os.cpu_count()} threads"),
        )

    def allocate(self, nbytes: int, kind: MemoryKind = MemoryKind.DEVICE) -> CpuBuffer:
        """New zero-filled pages."""
        try:
            pages = mmap.mmap(-1, nbytes)
        except (OSError, ValueError, OverflowError) as error:
            raise OutOfDeviceMemoryError(f"{nbytes} bytes of host memory: {error}; free some memory") from error
        return CpuBuffer(np.frombuffer(pages, np.uint8), kind)

    def wrap(self, pages: HostPages) -> CpuBuffer:
        """The pages themselves."""
        self.counters.bytes_shared += pages.nbytes
        return CpuBuffer(pages.view(), MemoryKind.SHARED, pages)

    def record(self) -> CpuCommandList:
        """A new, empty command list."""
        return CpuCommandList(self.counters)

    def submit(self, lists: Sequence[CommandList]) -> CpuSubmission:
        """Put the lists behind those submitted before."""
        return self._queue.add([cast(CpuCommandList, commands) for commands in lists])

    def write(self, buffer: Buffer, offset: int, data: Bytes) -> None:
        """Copy host bytes into a buffer."""
        _bytes(buffer, offset, data.size)[:] = data
        self.counters.bytes_copied += data.size

    def read(self, buffer: Buffer, offset: int, out: Bytes) -> None:
        """Copy a buffer's bytes to the host."""
        out[:] = _bytes(buffer, offset, out.size)
        self.counters.bytes_copied += out.size

    def load(self, buffer: Buffer, offset: int, data: Bytes) -> None:
        """Bring weights into a buffer."""
        _bytes(buffer, offset, data.size)[:] = data
        self.counters.bytes_loaded += data.size

    def close(self) -> None:
        """Nothing to wait for; buffers free themselves."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> Any:
        self.close()


def _bytes(buffer: Buffer, offset: int, nbytes: int) -> Bytes:
    if not 0 <= offset <= offset + nbytes <= buffer.nbytes:
        raise DeviceError(f"bytes {offset}..{offset + nbytes} are outside a buffer of {buffer.nbytes} bytes")
    return buffer.view()[offset : offset + nbytes]


def _processor() -> str:
    """The processor's marketing name where the system tells, else its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
            return next(names, platform.machine())
    except OSError:
        return platform.processor() or platform.machine()
