"""The device interface: allocate, wrap host pages, record a command list, submit, wait, report the cost.

Everything above this module (ops, models, host functions) uses only these protocols, so a backend can be added or
changed without reading another. Devices do not depend on Wasm or on models.

**Threads.** Any thread may use a device and its buffers. A command list is recorded, submitted and closed by one thread
at a time. Submitting holds a lock of the device; waiting holds none, so any number of threads can wait at once, also
for the same submission.

**Order.** Submissions take effect in the order of submission: one that touches bytes that an earlier one writes, or
writes bytes that an earlier one reads, runs after it. Submissions of one thread also end in that order. Submissions of
different threads may overlap if they have no byte in common.

**Pending.** A submission is pending until it has ended, which the device detects during a wait, at the next submission,
and when ``Submission.pending`` is read. A command list cannot be submitted again while a submission of it is pending
(DeviceError).

**Abandoned.** A kernel that has started cannot be stopped. Whoever no longer waits for a submission abandons it: the
device drops what has not started, and keeps alive what the rest uses until it has ended. If that takes longer than
``queue.PATIENCE`` seconds, the device is as good as lost, and later submissions raise DeviceLostError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from wasmetal.counters import Counters
from wasmetal.kernels.catalog import Kernel

Bytes = NDArray[np.uint8]


class HostPages(Protocol):
    """Whole host pages to wrap: an ``Aperture`` of a region, or the ``FilePages`` of a mapped file."""

    @property
    def address(self) -> int:
        """Host address of the first byte; a multiple of the page size."""

    @property
    def nbytes(self) -> int:
        """Length in bytes; a multiple of the page size."""

    def view(self) -> Bytes:
        """The bytes; the array keeps them mapped. Read-only for the pages of a file."""


class MemoryKind(Enum):
    """Where a buffer's bytes are. On a unified-memory device, both kinds are the same memory."""

    SHARED = "shared"
    """Visible to the host (and to a guest, if the buffer wraps its pages)."""
    DEVICE = "device"
    """The device's own memory; the host reaches it through :meth:`Device.read` and :meth:`Device.write` only."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """Properties and limits of a device. Sizes and alignments are in bytes."""

    name: str
    backend: str
    """``cpu``, ``vulkan``, ``metal`` or ``cuda``."""
    index: int
    driver: str
    unified: bool
    """True if device memory and host memory are the same memory."""
    memory_bytes: int
    page_alignment: int
    """The address and length of wrapped pages must be multiples of this."""
    offset_alignment: int
    """The offset of a binding in its buffer must be a multiple of this."""
    max_binding_bytes: int
    """The longest range that one binding can have."""
    subgroup_size: int
    """Threads of a subgroup (a warp, wave or simdgroup); 1 on the CPU device."""
    operations_per_second: float = 2e9
    """The least speed to expect, in the unit of ``ops.work``, for sizing what a guest's work is cut into."""
    gpu: bool = False
    """True for a GPU; False for the CPU, and for a driver that acts as a GPU on it."""
    lazy_memory: bool = False
    """True if memory that is allocated takes no room until it is written to."""
    wraps_files: bool = False
    """True if the pages of mapped files can be wrapped, so that weights are used in place."""
    expands_weights: bool = False
    """True if weights of any format should be expanded to float32 when they are loaded."""
    fuses: bool = False
    """True if a single row is computed faster by few kernels that do several ops each (``ops.fused``), as on a GPU."""
    shuffles: bool = False
    """True if subgroups have at least 32 threads, which can read each other's values, so that kernels may do it."""
    joins: bool = False
    """True if groups can read what others of the same dispatch have written, so that the last one may join it."""
    few_rows: int = 0
    """GEMMs of up to so many valid rows may add up products in another order than those of more."""
    features: tuple[str, ...] = ()
    """Names of the optional features in use, for ``wasmetal devices`` and ``doctor``."""

    @property
    def spec(self) -> str:
        """The argument of ``--device`` that selects this device: ``backend:index``."""
        return f"{self.backend}:{self.index}"


class Buffer(Protocol):
    """A range of bytes that can be bound to kernels. Zero-filled when allocated."""

    @property
    def nbytes(self) -> int:
        """Length in bytes."""

    @property
    def kind(self) -> MemoryKind:
        """Where the bytes are."""

    @property
    def address(self) -> int | None:
        """Host address of the first byte; None if the host cannot see the bytes."""

    @property
    def device_address(self) -> int | None:
        """Device address of the first byte; None if the device does not expose it."""

    def view(self) -> Bytes:
        """The bytes, uint8 of shape [nbytes], without a copy.

        Raises DeviceError if the host cannot see them or the buffer is closed.
        """

    def close(self) -> None:
        """Release the bytes; they are freed once no command list or view refers to them. Idempotent."""


@dataclass(frozen=True, slots=True)
class Binding:
    """A byte range of a buffer, as a kernel argument. ``offset`` is a multiple of ``DeviceInfo.offset_alignment``."""

    buffer: Buffer
    offset: int
    nbytes: int


class CommandList(Protocol):
    """Kernel dispatches, recorded once and submitted any number of times.

    Dispatches take effect in the order of recording: one that touches bytes that an earlier one writes, or writes bytes
    that an earlier one reads, runs after it. ``Kernel.access`` declares which buffers a kernel reads and writes.
    A list keeps the bytes of its buffers alive, even if a buffer is closed.
    """

    def dispatch(
        self, kernel: Kernel, bindings: Sequence[Binding], params: bytes, groups: tuple[int, int, int]
    ) -> None:
        """Record one kernel: ``bindings`` in the order of ``kernel.access``, packed parameters, and the grid.

        Raises DeviceError if an argument does not fit the kernel or the device, or the list is finished or closed.
        """

    def finish(self) -> None:
        """End recording. A list must be finished before it is submitted."""

    def close(self) -> None:
        """Free the list. Idempotent.

        The kernels of a pending submission that have started run to their end; the others may be dropped.
        """


class Submission(Protocol):
    """Command lists in flight on the device, and their cost."""

    @property
    def pending(self) -> bool:
        """Whether the submission has not ended yet. Reading it neither blocks nor runs kernels."""

    @property
    def seconds(self) -> float:
        """Device time from the start of the first kernel to the end of the last; 0.0 while pending."""

    @property
    def dispatches(self) -> int:
        """The number of dispatches."""

    def wait(self, timeout: float | None = None) -> None:
        """Block until the submission has ended.

        Raises DeviceTimeoutError after ``timeout`` seconds (the submission is then still pending), DeviceLostError, and
        DeviceError if the device failed. Every later wait raises the same error again.
        """

    def abandon(self) -> None:
        """Say that nobody will wait for the submission any more: see **Abandoned** above. Idempotent."""


class Device(Protocol):
    """An open device. Use it as a context manager, or call :meth:`close`."""

    @property
    def info(self) -> DeviceInfo:
        """Properties of the device. Available after ``close`` too."""

    @property
    def counters(self) -> Counters:
        """Counts of copies, shared bytes and submissions since the device was opened."""

    def allocate(self, nbytes: int, kind: MemoryKind = MemoryKind.DEVICE) -> Buffer:
        """A new zero-filled buffer of ``nbytes`` > 0. Raises OutOfDeviceMemoryError, and DeviceError for no bytes."""

    def wrap(self, pages: HostPages) -> Buffer:
        """Host pages as a buffer, not copied; they stay mapped while the buffer or a view of it is used.

        Raises WrapRefusedError. Read-only pages, those of a file, are accepted only if ``info.wraps_files``; kernels
        must not write to them.
        """

    def record(self) -> CommandList:
        """A new, empty command list."""

    def submit(self, lists: Sequence[CommandList], *, patient: bool = False, expected: float = 0.0) -> Submission:
        """Start one or more finished lists, in order, as one submission. A list runs as often as it is named.

        ``patient``: other threads of this process have work of their own meanwhile, so whoever waits lets them have
        the processor and Python's lock, and may notice the end a little later. ``expected``: how many seconds it is
        going to take, if that is known: whoever waits may sleep for almost as long.

        Raises DeviceError if a list is unfinished, closed, pending, or belongs to another device.
        """

    def write(self, buffer: Buffer, offset: int, *data: Bytes) -> None:
        """Copy ``data``, one-dimensional uint8 arrays, into a buffer, one after the other; counted in ``bytes_copied``.

        Neither ``write`` nor the other copies, down to :meth:`load`, wait for submissions that use the bytes: wait for
        them first. All raise DeviceError for data of another dtype, and for a range that exceeds the buffer.
        """

    def write_rows(self, buffers: Sequence[Buffer], offset: int, *data: Bytes) -> None:
        """Like :meth:`write`, into several buffers: ``data`` are arrays [len(buffers), n], row i for buffer i.

        Faster than a call for each, where there are many.
        """

    def read(self, buffer: Buffer, offset: int, out: Bytes) -> None:
        """Copy a buffer's bytes into ``out``; counted in ``bytes_copied``."""

    def read_rows(self, buffers: Sequence[Buffer], offset: int, *out: Bytes) -> None:
        """The reverse of :meth:`write_rows`: row i of each array, one after the other, from buffer i."""

    def load(self, buffer: Buffer, offset: int, data: Bytes) -> None:
        """Like :meth:`write`, for model weights; counted in ``bytes_loaded``."""

    def close(self) -> None:
        """Close every list and buffer. Idempotent. Views stay valid.

        Pending submissions get ``queue.CLOSING`` seconds to end; those that take longer are abandoned.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> Any: ...
