"""What a backend implements: the part of a device that differs. ``OpenDevice`` makes a ``base.Device`` of it.

Callers have been checked before a backend is called: bindings, grids, copies, page ranges and states.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from wasmetal.device.base import Bytes, DeviceInfo, HostPages, MemoryKind
from wasmetal.device.hazards import Touch
from wasmetal.kernels.catalog import Kernel

Grid = tuple[int, int, int]


class Allocation(Protocol):
    """Memory that the device can use, freed when nothing refers to it any more.

    Buffers, recorded lists and views of the bytes refer to it, so it outlives the buffer that was closed before them.
    """

    @property
    def address(self) -> int | None:
        """Host address of the first byte; None if the host cannot see the bytes."""

    @property
    def device_address(self) -> int | None:
        """The address at which the device sees the first byte; None if the device does not tell."""

    def view(self) -> Bytes:
        """The bytes, uint8 of one dimension. Called only if there is an ``address``."""


A = TypeVar("A", bound=Allocation)
C = TypeVar("C")


# These two are made for every command of a guest, and a frozen dataclass takes three times as long to make.


@dataclass(slots=True, eq=False)
class Range(Generic[A]):
    """A binding, checked. It refers to the allocation, so that the buffer may be closed before the list is finished."""

    allocation: A
    offset: int
    nbytes: int


@dataclass(slots=True, eq=False)
class Dispatch(Generic[A, C]):
    """A recorded kernel, checked."""

    kernel: Kernel
    code: C
    """What :meth:`Backend.resolve` found for it."""
    ranges: tuple[Range[A], ...]
    params: bytes
    groups: Grid

    def touches(self) -> list[Touch]:
        """The byte ranges that the kernel reads and writes, by host address if there is one.

        Two buffers over the same pages have the same addresses, so they count as the same memory.
        """
        touches: list[Touch] = []
        for access, bound in zip(self.kernel.access, self.ranges, strict=True):
            address = bound.allocation.address
            space, base = (id(bound.allocation), 0) if address is None else (None, address)
            start = base + bound.offset
            touches.append((access, space, start, start + bound.nbytes))
        return touches


class Recording(Protocol):
    """A finished command list, as the device runs it. It refers to everything that it uses."""

    @property
    def dispatches(self) -> int:
        """How many kernels it runs."""

    def close(self) -> None:
        """Called when the list is closed, perhaps while a submission of it is pending."""


R = TypeVar("R", bound=Recording)


class Work(Protocol):
    """Recordings that were started together."""

    def wait(self, seconds: float) -> bool:
        """Block for at most about so many seconds; return whether the work has ended. Called without any lock."""

    def ended(self) -> bool:
        """Whether the work has ended, without waiting."""

    def result(self) -> tuple[float, Exception | None]:
        """Once it has ended: the seconds that the device spent, and the error that it ended with. Called once."""


class Backend(ABC, Generic[A, C, R]):
    """A device's own half: its memory, its compiled kernels, its queue."""

    info: DeviceInfo
    grid_limits: Grid
    """The most groups along each side of a grid."""

    @abstractmethod
    def allocate(self, nbytes: int, kind: MemoryKind) -> A:
        """Zero-filled memory of at least ``nbytes`` > 0. Raises OutOfDeviceMemoryError."""

    @abstractmethod
    def wrap(self, pages: HostPages) -> A:
        """Accessible, aligned host pages as memory of the device. Raises WrapRefusedError, with the driver's reason."""

    @abstractmethod
    def resolve(self, kernel: Kernel, params: bytes, ranges: Sequence[Range[A]]) -> C:
        """What computes a kernel on this device: the kernel, or a variant of it, compiled. Raises DeviceError."""

    @abstractmethod
    def build(self, dispatches: Sequence[Dispatch[A, C]]) -> R:
        """A finished list, ready to be started again and again. Raises DeviceError."""

    @abstractmethod
    def start(self, recordings: Sequence[R]) -> Work:
        """Start recordings, in order, after everything that was started before. One call at a time."""

    def copy(self, source: Range[A], target: Range[A]) -> None:
        """Copy between two ranges of one length, behind all that was started before; done on return.

        Called only if the device has memory that the host cannot see.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Called once, when all work has ended: the place to save compiled kernels."""


AnyBackend = Backend[Any, Any, Any]


class Tier(IntEnum):
    """How good a choice a device is; ``auto`` takes the highest."""

    SOFTWARE = 0
    """A GPU interface carried out on the CPU: never better than the CPU device itself, so ``auto`` leaves it alone."""
    CPU = 1
    INTEGRATED = 2
    DISCRETE = 3


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device that can be opened. A backend's package lists its devices, in the driver's order: ``find_devices()``."""

    info: DeviceInfo
    tier: Tier
    open: Callable[[], AnyBackend]
    """Opens it. Raises DeviceError."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """A device that a driver shows, and that cannot be used."""

    name: str
    problem: str
    """Why, in words."""


FoundDevice = Candidate | Unusable


class Shown(Protocol):
    """A device as a driver shows it."""

    name: str
    problem: str | None
    """Why it cannot be used, in words; the rest is to be relied on only if this is None."""
    tier: Tier
    info: DeviceInfo


S = TypeVar("S", bound=Shown)


def found_devices(shown: Iterable[S], open_one: Callable[[S], AnyBackend]) -> list[FoundDevice]:
    """What ``find_devices()`` returns, for the devices that a driver shows."""
    return [
        Unusable(each.name, each.problem) if each.problem else Candidate(each.info, each.tier, partial(open_one, each))
        for each in shown
    ]
