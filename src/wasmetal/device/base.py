"""What a device is: allocate, wrap host pages, record a command list, submit, wait, report the cost.

Everything above this module (ops, models, host functions) speaks to these protocols alone, so that a device can be
added or changed without reading another. Devices know nothing of Wasm or of models.

**Threads.** Any thread may use a device and its buffers. A command list is recorded, submitted and closed by one thread
at a time. Submitting holds a lock of the device's; waiting holds none, so any number of threads can wait at once, also
for the same submission.

**Order.** Submissions take effect in the order in which they were submitted: one that touches what an earlier one
writes, or writes what it reads, sees it finished. Those of one thread end in that order too. Between threads,
submissions without a byte in common may overlap.

**Pending.** A submission is pending until it has ended, which the device notices when it is waited for and at the next
submission. A command list of a pending submission cannot be submitted again (DeviceError): wait for it first.
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
    """Whole pages of the host's, to be wrapped: an ``Aperture`` of a region, or the ``FilePages`` of a mapped file."""

    @property
    def address(self) -> int:
        """Host address of the first byte; a multiple of the page size."""

    @property
    def nbytes(self) -> int:
        """Length in bytes; a multiple of the page size."""

    def view(self) -> Bytes:
        """The bytes themselves; the array keeps them mapped. Read-only for a file's."""


class MemoryKind(Enum):
    """Where a buffer's bytes live. On a unified-memory device the two are the same memory."""

    SHARED = "shared"
    """Visible to the host (and to a guest, if the buffer wraps its pages)."""
    DEVICE = "device"
    """The device's own memory; the host reaches it through :meth:`Device.read` and :meth:`Device.write` only."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What a device is and what it demands. Sizes and alignments are in bytes."""

    name: str
    backend: str
    """``cpu``, ``vulkan``, ``metal`` or ``cuda``."""
    index: int
    driver: str
    unified: bool
    """True if device memory and host memory are the same memory."""
    memory_bytes: int
    page_alignment: int
    """Address and length of wrapped pages must be multiples of this."""
    offset_alignment: int
    """A binding's offset in its buffer must be a multiple of this."""
    max_binding_bytes: int
    """The longest range that one binding can show to a kernel."""
    subgroup_size: int
    """Threads that run in lockstep; 1 on the CPU device."""
    wraps_files: bool = False
    """True if the pages of mapped files can be wrapped too, so that weights are used in place."""
    expands_weights: bool = False
    """True if weights are best expanded to float32 when they are loaded, whatever their format in the file."""
    features: tuple[str, ...] = ()
    """What the device makes use of, in words, for ``wasmetal devices`` and ``doctor``."""

    @property
    def spec(self) -> str:
        """The device as ``--device`` takes it: ``backend:index``."""
        return f"{self.backend}:{self.index}"


class Buffer(Protocol):
    """A range of bytes that kernels can be given. Zero-filled when allocated."""

    @property
    def nbytes(self) -> int:
        """Length in bytes."""

    @property
    def kind(self) -> MemoryKind:
        """Where the bytes live."""

    @property
    def address(self) -> int | None:
        """Host address of the first byte; None if the host cannot see the bytes."""

    @property
    def device_address(self) -> int | None:
        """The address at which the device sees the first byte; None if the device does not tell."""

    def view(self) -> Bytes:
        """The bytes themselves, uint8 of shape [nbytes], without a copy.

        Raises DeviceError if the host cannot see them, or the buffer is closed.
        """

    def close(self) -> None:
        """Release the bytes; they are freed when no command list and no view refers to them. Idempotent."""


@dataclass(frozen=True, slots=True)
class Binding:
    """A byte range of a buffer, as one argument of a kernel. ``offset`` obeys ``DeviceInfo.offset_alignment``."""

    buffer: Buffer
    offset: int
    nbytes: int


class CommandList(Protocol):
    """Kernel dispatches, recorded once and submitted any number of times.

    Dispatches take effect in the order of recording: the device orders one after another wherever the second touches
    what the first wrote (or writes what it read), by the accesses that ``Kernel.access`` declares.
    A list keeps the bytes of every buffer that it names, also if the buffer is closed.
    """

    def dispatch(
        self, kernel: Kernel, bindings: Sequence[Binding], params: bytes, groups: tuple[int, int, int]
    ) -> None:
        """Record one kernel: its buffers in the order of ``kernel.access``, its packed parameters, its grid.

        Raises DeviceError if they do not fit the kernel or the device, or the list is finished or closed.
        """

    def finish(self) -> None:
        """End recording. A list must be finished before it is submitted."""

    def close(self) -> None:
        """Free the list. Idempotent.

        What the device has begun of a pending submission ends first; what it has not begun, it may drop.
        """


class Submission(Protocol):
    """Command lists in flight on the device, and what they cost."""

    @property
    def pending(self) -> bool:
        """Whether the submission is not known to have ended."""

    @property
    def seconds(self) -> float:
        """Time that the device spent, from the first kernel to the end of the last; 0.0 while pending."""

    @property
    def dispatches(self) -> int:
        """How many kernels were submitted."""

    def wait(self, timeout: float | None = None) -> None:
        """Block until the submission has ended.

        Raises DeviceTimeoutError after ``timeout`` seconds (the submission is then still pending), DeviceLostError, and
        DeviceError if the device failed; what was raised is raised again by every later wait.
        """


class Device(Protocol):
    """One device, opened. Use as a context manager, or call :meth:`close`."""

    @property
    def info(self) -> DeviceInfo:
        """What the device is."""

    @property
    def counters(self) -> Counters:
        """What this device has copied, shared and run since it was opened."""

    def allocate(self, nbytes: int, kind: MemoryKind = MemoryKind.DEVICE) -> Buffer:
        """A new zero-filled buffer of ``nbytes`` > 0. Raises OutOfDeviceMemoryError, and DeviceError for no bytes."""

    def wrap(self, pages: HostPages) -> Buffer:
        """Host pages as a buffer, not copied; they stay mapped while the buffer or a view of it is used.

        Raises WrapRefusedError. Read-only pages are a file's: they are taken only if ``info.wraps_files``, and kernels
        must not write to them.
        """

    def record(self) -> CommandList:
        """A new, empty command list."""

    def submit(self, lists: Sequence[CommandList]) -> Submission:
        """Start one or more finished lists, in order, as one submission.

        Raises DeviceError if a list is unfinished, closed, pending, another device's, or named twice.
        """

    def write(self, buffer: Buffer, offset: int, data: Bytes) -> None:
        """Copy ``data``, uint8 of one dimension, into a buffer; counted in ``bytes_copied``.

        This and :meth:`read` and :meth:`load` may touch the bytes at once: first wait for submissions that use them.
        They raise DeviceError for bytes of another dtype, or outside of the buffer.
        """

    def read(self, buffer: Buffer, offset: int, out: Bytes) -> None:
        """Copy a buffer's bytes into ``out``; counted in ``bytes_copied``."""

    def load(self, buffer: Buffer, offset: int, data: Bytes) -> None:
        """Like :meth:`write`, for model weights; counted in ``bytes_loaded``."""

    def close(self) -> None:
        """Wait for pending submissions, then close every list and buffer. Idempotent. Views stay valid."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> Any: ...
