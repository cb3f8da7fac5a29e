"""What a device is: allocate, wrap host pages, record a command list, submit, wait, report time.

Everything above this module (ops, models, host functions) speaks to these protocols alone, so that a device can be
added or changed without reading another. Devices know nothing of Wasm or of models.
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
    """Visible to the host (and to a guest, where the buffer wraps its pages)."""
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
    """True where device memory and host memory are the same memory."""
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
    """True where the pages of mapped files can be wrapped too, so that weights are used where they lie."""
    simdgroup_matrices: bool = False
    """True where products of matrices are to be computed by kernels with simdgroup matrices: see the catalog."""
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
        """Host address of the first byte; None where the host cannot see the bytes."""

    @property
    def device_address(self) -> int | None:
        """The address at which the device sees the first byte; None where the device does not tell."""

    def view(self) -> Bytes:
        """The bytes themselves, uint8 of shape [nbytes], without a copy.

        Raises DeviceError where the host cannot see them.
        """

    def close(self) -> None:
        """Give the bytes back, at the latest when no recorded command list uses them. Idempotent."""


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
    A list keeps alive every buffer that it names.
    """

    def dispatch(
        self, kernel: Kernel, bindings: Sequence[Binding], params: bytes, groups: tuple[int, int, int]
    ) -> None:
        """Record one kernel: its buffers in the order of ``kernel.access``, its packed parameters, its grid."""

    def finish(self) -> None:
        """End recording. A list must be finished before it is submitted."""

    def close(self) -> None:
        """Free the list, once no submission of it is pending. Idempotent."""


class Submission(Protocol):
    """Command lists under way on the device. What they cost is known once :meth:`wait` has returned."""

    @property
    def seconds(self) -> float:
        """The seconds that the device spent."""

    @property
    def dispatches(self) -> int:
        """The kernels that it ran."""

    def wait(self, timeout: float | None = None) -> float:
        """Block until done; return the seconds that the device spent.

        Raises DeviceTimeoutError after ``timeout`` seconds (the submission is then still pending) and DeviceLostError.
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
        """A new zero-filled buffer of ``nbytes`` > 0. Raises OutOfDeviceMemoryError."""

    def wrap(self, pages: HostPages) -> Buffer:
        """Host pages as a buffer, not copied; borrows them. Raises WrapRefusedError.

        Those of a file only where ``info.wraps_files``; kernels must not write to them.
        """

    def record(self) -> CommandList:
        """A new, empty command list."""

    def submit(self, lists: Sequence[CommandList]) -> Submission:
        """Start finished lists, in order, as one submission."""

    def write(self, buffer: Buffer, offset: int, data: Bytes) -> None:
        """Copy host bytes into a buffer; counted in ``bytes_copied``."""

    def read(self, buffer: Buffer, offset: int, out: Bytes) -> None:
        """Copy a buffer's bytes to the host; counted in ``bytes_copied``."""

    def load(self, buffer: Buffer, offset: int, data: Bytes) -> None:
        """Like :meth:`write`, for model weights; counted in ``bytes_loaded``."""

    def close(self) -> None:
        """Wait for the device and free everything that is its own. Idempotent."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> Any: ...
