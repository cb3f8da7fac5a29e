"""An open device: the half that all backends share."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Sequence
from typing import cast

from wasmetal.closing import Closing
from wasmetal.counters import Counters
from wasmetal.device import abandoned
from wasmetal.device.backend import Allocation, AnyBackend
from wasmetal.device.base import Buffer, Bytes, CommandList, DeviceInfo, HostPages, MemoryKind
from wasmetal.device.buffer import DeviceBuffer, allocation_of
from wasmetal.device.checks import check_copy, check_rows
from wasmetal.device.commandlist import RecordedList
from wasmetal.device.copying import Copier
from wasmetal.device.hostpages import check_file, check_pages
from wasmetal.device.queue import DeviceSubmission, Queue
from wasmetal.errors import DeviceError, DeviceLostError, OutOfDeviceMemoryError, WrapRefusedError
from wasmetal.forked import Origin


class OpenDevice(Closing):
    """A ``base.Device`` over a backend. ``base`` documents threads, order and pending lists."""

    def __init__(self, backend: AnyBackend) -> None:
        abandoned.release_ended()
        self._backend: AnyBackend | None = backend
        self._info: DeviceInfo | None = None
        self._origin = Origin(f"the device {backend.info.spec}")
        self._counters = Counters()
        self._queue = Queue(backend, self._counters)
        self._copier = Copier()
        self._buffers: weakref.WeakSet[DeviceBuffer] = weakref.WeakSet()
        self._lists: weakref.WeakSet[RecordedList] = weakref.WeakSet()

    @property
    def backend(self) -> AnyBackend:
        """The backend-specific half. Raises DeviceError if the device is closed, ForkedError in a forked process."""
        self._origin.check()
        if self._backend is None:
            raise DeviceError("the device is closed; open it again")
        return self._backend

    @property
    def info(self) -> DeviceInfo:
        """Properties of the device. Available after ``close`` too."""
        return self._info or self.backend.info

    @property
    def counters(self) -> Counters:
        """Counts of copies, shared bytes and submissions since the device was opened."""
        return self._counters

    def allocate(self, nbytes: int, kind: MemoryKind = MemoryKind.DEVICE) -> DeviceBuffer:
        """A new zero-filled buffer of ``nbytes`` > 0. Raises OutOfDeviceMemoryError, and DeviceError for no bytes."""
        backend = self.backend
        if nbytes < 1:
            raise DeviceError(f"a buffer of {nbytes} bytes cannot be allocated; ask for at least one")
        return self._keep(DeviceBuffer(backend, backend.allocate(nbytes, kind), nbytes, kind, self._origin))

    def wrap(self, pages: HostPages) -> DeviceBuffer:
        """Host pages as a buffer, not copied; they stay mapped while the buffer or a view of it is used.

        Raises WrapRefusedError with the reason.
        """
        backend, writable = self.backend, True
        try:
            writable = check_pages(backend.info, pages)
            buffer = DeviceBuffer(backend, backend.wrap(pages), pages.nbytes, MemoryKind.SHARED, self._origin)
            if not writable:
                check_file(self, buffer)
        except (WrapRefusedError, OutOfDeviceMemoryError) as error:  # out of memory: the pages cannot be pinned
            where = f"{pages.nbytes} bytes of host pages at {pages.address:#x}"
            advice = "" if writable else "; to have a model's file copied, set WASMETAL_COPY_WEIGHTS=1"
            raise WrapRefusedError(f"{where} cannot be shared with {backend.info.name}: {error}{advice}") from error
        with self._queue.lock:
            self._counters.bytes_shared += pages.nbytes
        return self._keep(buffer)

    def record(self) -> RecordedList:
        """A new, empty command list."""
        commands = RecordedList(self.backend)
        with self._queue.lock:
            self._lists.add(commands)
        return commands

    def submit(self, lists: Sequence[CommandList], *, patient: bool = False, expected: float = 0.0) -> DeviceSubmission:
        """Start one or more finished lists, in order, as one submission: see :meth:`Device.submit`.

        Raises DeviceError if a list is unfinished, closed, pending, or belongs to another device.
        """
        backend = self.backend
        for commands in lists:
            if not isinstance(commands, RecordedList) or (commands.backend is not backend and commands.backend):
                raise DeviceError(f"a command list of another device cannot be submitted to {backend.info.name}")
        return self._queue.submit(cast(Sequence[RecordedList], lists), patient, expected)

    def write(self, buffer: Buffer, offset: int, *data: Bytes) -> None:
        """Copy one-dimensional uint8 arrays, one after the other, into a buffer; counted in ``bytes_copied``."""
        nbytes = self._copy_in(buffer, offset, *data)
        with self._queue.lock:
            self._counters.bytes_copied += nbytes

    def write_rows(self, buffers: Sequence[Buffer], offset: int, *data: Bytes) -> None:
        """Copy rows of uint8 arrays into several buffers: see :meth:`Device.write_rows`."""
        backend = self.backend
        check_rows(buffers, offset, *data)
        allocations = [allocation_of(buffer, backend) for buffer in buffers]
        nbytes = self._copier.copy_rows_in(backend, allocations, offset, data)
        with self._queue.lock:
            self._counters.bytes_copied += nbytes

    def load(self, buffer: Buffer, offset: int, data: Bytes) -> None:
        """Like :meth:`write`, for model weights; counted in ``bytes_loaded``."""
        nbytes = self._copy_in(buffer, offset, data)
        with self._queue.lock:
            self._counters.bytes_loaded += nbytes

    def read(self, buffer: Buffer, offset: int, out: Bytes) -> None:
        """Copy a buffer's bytes into ``out``; counted in ``bytes_copied``."""
        backend = self.backend
        self._copier.copy_out(backend, _memory(backend, buffer, offset, out), offset, out)
        with self._queue.lock:
            self._counters.bytes_copied += out.size

    def read_rows(self, buffers: Sequence[Buffer], offset: int, *out: Bytes) -> None:
        """Copy bytes of several buffers into rows of uint8 arrays: see :meth:`Device.read_rows`."""
        backend = self.backend
        check_rows(buffers, offset, *out)
        allocations = [allocation_of(buffer, backend) for buffer in buffers]
        nbytes = self._copier.copy_rows_out(backend, allocations, offset, out)
        with self._queue.lock:
            self._counters.bytes_copied += nbytes

    def close(self) -> None:
        """Close every list and buffer. Idempotent. Views stay valid.

        Pending submissions get ``queue.CLOSING`` seconds to end; those that take longer are abandoned. In a process
        that was forked since the device was opened, nothing happens: the device is the parent's.
        """
        if self._backend is None or not self._origin.here:
            return
        backend, self._info, self._backend = self._backend, self._backend.info, None
        self._queue.close()
        with contextlib.suppress(DeviceLostError):  # a lost device has nothing to save
            backend.close()
        self._copier.close()
        for commands in list(self._lists):
            commands.close()
        for buffer in list(self._buffers):
            buffer.close()

    def _keep(self, buffer: DeviceBuffer) -> DeviceBuffer:
        with self._queue.lock:
            self._buffers.add(buffer)
        return buffer

    def _copy_in(self, buffer: Buffer, offset: int, *data: Bytes) -> int:
        """Copy, and return how many bytes these were."""
        backend = self.backend
        return self._copier.copy_in(backend, _memory(backend, buffer, offset, *data), offset, data)


def _memory(backend: AnyBackend, buffer: Buffer, offset: int, *data: Bytes) -> Allocation:
    """The memory behind a buffer, if ``data`` can be copied to or from it at ``offset``."""
    allocation = allocation_of(buffer, backend)
    check_copy(buffer, offset, *data)
    return allocation
