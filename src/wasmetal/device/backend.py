"""The interface that each backend implements. ``OpenDevice`` builds a ``base.Device`` on it.

``OpenDevice`` checks bindings, grids, copies, page ranges and states, so backends do not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any, Generic, Literal, Protocol, TypeVar

from wasmetal.device.base import Bytes, DeviceInfo, HostPages, MemoryKind
from wasmetal.device.hazards import Touch
from wasmetal.kernels.catalog import Kernel

Grid = tuple[int, int, int]


class Allocation(Protocol):
    """Memory that the device can use, freed once nothing refers to it.

    Buffers, recorded lists and views of the bytes refer to the allocation, so it can outlive its buffer.
    """

    @property
    def address(self) -> int | None:
        """Host address of the first byte; None if the host cannot see the bytes."""

    @property
    def device_address(self) -> int | None:
        """Device address of the first byte; None if the device does not expose it."""

    def view(self) -> Bytes:
        """The bytes, a one-dimensional uint8 array. Called only if there is an ``address``."""


A = TypeVar("A", bound=Allocation)
C = TypeVar("C")


# Range and Dispatch are not frozen: a frozen dataclass is three times as slow to create, and guests create many.


@dataclass(slots=True, eq=False)
class Range(Generic[A]):
    """A checked binding. It refers to the allocation, so that the buffer may be closed before the list is finished."""

    allocation: A
    offset: int
    nbytes: int


@dataclass(slots=True, eq=False)
class Dispatch(Generic[A, C]):
    """A checked dispatch of a kernel."""

    kernel: Kernel
    code: C
    """The result of :meth:`Backend.resolve`."""
    ranges: tuple[Range[A], ...]
    params: bytes
    groups: Grid

    def touches(self) -> list[Touch]:
        """The byte ranges that the kernel reads and writes, by host address if there is one.

        Two buffers over the same pages have the same addresses, so their accesses can conflict.
        """
        touches: list[Touch] = []
        for access, bound in zip(self.kernel.access, self.ranges, strict=True):
            address = bound.allocation.address
            space, base = (id(bound.allocation), 0) if address is None else (None, address)
            start = base + bound.offset
            touches.append((access, space, start, start + bound.nbytes))
        return touches


class Recording:
    """A finished command list in the form that the device runs. It refers to everything that it uses."""

    dispatches: int
    """The number of dispatches."""

    def close(self) -> None:
        """Called when the list is closed. A pending submission keeps the recording alive until it has ended."""


R = TypeVar("R", bound=Recording)


class Work(ABC):
    """Recordings that were started together, in flight. Every method may raise DeviceLostError.

    What the recordings use is kept alive until the work has ended, by the caller of :meth:`Backend.start`.
    """

    patient = False
    """Whether other threads need the processor meanwhile: then :meth:`wait` does not ask again and again."""

    due = 0.0
    """When it is expected to end, if that is known (``time.perf_counter()``)."""

    @abstractmethod
    def wait(self, seconds: float) -> bool:
        """Block for at most about ``seconds``; return whether the work has ended. Called without any lock."""

    def ended(self) -> bool:
        """Whether the work has ended, without waiting and without locks, because finalizers ask too."""
        return self.wait(0)

    @abstractmethod
    def result(self) -> tuple[float, Exception | None]:
        """The device time in seconds, and the error if the work failed. Called once, after the work has ended."""

    def drop(self) -> None:  # noqa: B027 (most devices cannot)
        """Drop what has not started, if the device can do that: nobody waits for it any more."""


Precision = Literal["exact", "standard", "fast"]
"""What activations may be rounded to before they are multiplied; sums are float32.

``exact``: nothing. ``standard``, as in other engines: float16, in GEMMs and attention on a GPU's matrix units (there
also keys, values and weights of the softmax); 8 bits, with a scale for each 32, where a GPU multiplies a single row by
weights of 8 bits or fewer. ``fast``: fewer bits, where that is faster."""


class Backend(ABC, Generic[A, C, R]):
    """The backend-specific half of a device: memory, compiled kernels, queue."""

    info: DeviceInfo
    grid_limits: Grid
    """The maximum number of groups along each side of a grid."""
    precision: Precision = "exact"
    """How exactly kernels compute what is recorded from now on. A backend may be more exact than it is asked to be."""
    in_order = True
    """Whether all work waits for all earlier work, so that work which never ends holds up what follows."""

    @abstractmethod
    def allocate(self, nbytes: int, kind: MemoryKind) -> A:
        """Zero-filled memory of at least ``nbytes`` > 0. Raises OutOfDeviceMemoryError."""

    @abstractmethod
    def wrap(self, pages: HostPages) -> A:
        """Import accessible, aligned host pages. Raises WrapRefusedError with the driver's reason."""

    @abstractmethod
    def resolve(self, kernel: Kernel, params: bytes, ranges: Sequence[Range[A]]) -> C:
        """The compiled kernel, or a variant of it that suits the dispatch. Raises DeviceError."""

    @abstractmethod
    def build(self, dispatches: Sequence[Dispatch[A, C]]) -> R:
        """Build a recording, which can be started any number of times. Raises DeviceError."""

    @abstractmethod
    def start(self, recordings: Sequence[R]) -> Work:
        """Start recordings in order, after all earlier work. One call at a time. Raises DeviceLostError."""

    def prepare(self, recordings: Sequence[R]) -> None:
        """Prepare for these recordings to be started again: a thread is about to wait for them, and has time.

        May be called several times for what was started once; not at the same time as :meth:`start`.
        """

    def copy(self, source: Range[A], target: Range[A]) -> None:
        """Copy between two ranges of equal length after all earlier work; complete on return.

        Called only if a range is in memory that the host cannot see.
        """
        raise NotImplementedError

    def begin_copies(self, pairs: Sequence[tuple[Range[A], Range[A]]]) -> Callable[[], None]:
        """Begin what :meth:`copy` does for each (source, target); what is returned waits until all are complete."""
        for source, target in pairs:
            self.copy(source, target)
        return lambda: None

    def close(self) -> None:
        """Save compiled kernels. Called once; abandoned work may still be running."""


AnyBackend = Backend[Any, Any, Any]


class Tier(IntEnum):
    """The rank of a device; ``auto`` opens one of the highest tier."""

    SOFTWARE = 0
    """A GPU API emulated on the CPU: slower than the CPU device, so ``auto`` ranks it last."""
    CPU = 1
    INTEGRATED = 2
    DISCRETE = 3


LEAST_SPEEDS = {Tier.SOFTWARE: 2e9, Tier.CPU: 2e9, Tier.INTEGRATED: 5e10, Tier.DISCRETE: 2e11}
"""The least speed to expect of a device of each tier, in operations per second."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device that can be opened. ``find_devices()`` of a backend lists them in the driver's order."""

    info: DeviceInfo
    tier: Tier
    open: Callable[[], AnyBackend]
    """Opens the device. Raises DeviceError."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """A device that a driver enumerates but that cannot be used."""

    name: str
    problem: str
    """The reason, for the user."""


FoundDevice = Candidate | Unusable


class Shown(Protocol):
    """A device that a driver enumerates."""

    name: str
    problem: str | None
    """Why it cannot be used, for the user; ``tier`` and ``info`` are set only if this is None."""
    tier: Tier
    info: DeviceInfo


S = TypeVar("S", bound=Shown)


def found_devices(shown: Iterable[S], open_one: Callable[[S], AnyBackend]) -> list[FoundDevice]:
    """The result of ``find_devices()`` for the devices that a driver enumerates."""
    return [
        Unusable(each.name, each.problem) if each.problem else Candidate(each.info, each.tier, partial(open_one, each))
        for each in shown
    ]
