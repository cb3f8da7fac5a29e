"""What a guest's WASI descriptors stand for: standard streams, and files and directories of the host."""

from __future__ import annotations

import os
import resource
import select
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wasmetal.host import wasi
from wasmetal.host.errno import Refusal, WasiErrno
from wasmetal.host.handles import Handles
from wasmetal.host.interrupt import Interrupt
from wasmetal.host.streams import Output
from wasmetal.memory.file_locks import lock_for_writing

_LOOK = 0.05
"""Seconds of waiting for input between two checks of the guest's limits."""


class Input:
    """Standard input: bytes, the process's own, or what a function gives when it is read."""

    def __init__(self, source: wasi.Input, interrupt: Interrupt) -> None:
        self._give = source if callable(source) else None
        self._rest = None if source == "inherit" or callable(source) else memoryview(source)
        self._interrupt = interrupt

    @property
    def is_terminal(self) -> bool:
        """Whether a user types it."""
        return self._rest is None and not self._give and os.isatty(0)

    def read(self, most: int) -> bytes:
        """Up to ``most`` bytes, none at the end. Raises what ``Interrupt.check`` does if the guest is stopped."""
        if self._give:
            try:
                return self._give(most)[:most]
            except BaseException as error:
                self._interrupt.stop(error)
                raise
        if self._rest is None:
            while not select.select([0], [], [], _LOOK)[0]:
                self._interrupt.check()
            return os.read(0, most)
        data, self._rest = self._rest[:most], self._rest[most:]
        return bytes(data)


@dataclass(eq=False, slots=True)
class File:
    """An open file, or an open directory."""

    fd: int
    """The host's descriptor."""
    read_only: bool
    """Whether it, and all that is in it, may not change."""
    is_directory: bool = False
    append: bool = False
    name: bytes | None = None
    """The guest's name for it, if it was granted."""

    def changeable(self) -> File:
        """Itself. Raises ROFS if it may not change."""
        if self.read_only:
            raise Refusal(WasiErrno.ROFS, "the directory was granted for reading only")
        return self


Descriptor = Input | Output | File


class Descriptors:
    """One guest's descriptors by number. Those that it opens are counted with its handles."""

    def __init__(self, handles: Handles) -> None:
        self._handles = handles
        self._open: dict[int, Descriptor] = {}

    def grant(self, descriptor: Descriptor) -> None:
        """Add what the host gives the guest, under the next number."""
        self._open[len(self._open)] = descriptor

    def open(self, make: Callable[[], int], read_only: bool, writing: bool, append: bool) -> int:
        """A new number for the descriptor that ``make`` opens.

        Raises MFILE at the guest's limit on handles, and where the process has less than a quarter of its descriptors
        left, which are the embedder's; NOTSUP for anything but a file or directory, which could block; TXTBSY for
        ``writing`` to a model file that is used in place, in whatever process; and OSError.
        """
        self._handles.check_room()
        fd = make()
        try:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            if limit != resource.RLIM_INFINITY and fd >= limit * 3 // 4:  # the system gives the lowest free number
                raise Refusal(WasiErrno.MFILE, "guests hold three quarters of the process's descriptors")
            status = os.fstat(fd)
            is_directory = stat.S_ISDIR(status.st_mode)
            if not (is_directory or stat.S_ISREG(status.st_mode)):
                raise Refusal(WasiErrno.NOTSUP, "neither a file nor a directory")
            if writing and not lock_for_writing(fd):
                raise Refusal(WasiErrno.TXTBSY, "a model file that is in use, or locked by another program")
        except BaseException:
            os.close(fd)
            raise
        self._handles.hold()
        number = next(number for number in range(len(self._open) + 1) if number not in self._open)
        self._open[number] = File(fd, read_only, is_directory, append)
        return number

    def get(self, number: int) -> Descriptor:
        """What a number stands for. BADF if nothing does."""
        descriptor = self._open.get(number)
        if descriptor is None:
            raise Refusal(WasiErrno.BADF, f"descriptor {number} is not open")
        return descriptor

    def file(self, number: int) -> File:
        """The file or directory that a number stands for. Raises BADF."""
        descriptor = self.get(number)
        if not isinstance(descriptor, File):
            raise Refusal(WasiErrno.BADF, f"descriptor {number} is a stream")
        return descriptor

    def directory(self, number: int) -> File:
        """The directory that a number stands for. Raises BADF and NOTDIR."""
        descriptor = self.file(number)
        if not descriptor.is_directory:
            raise Refusal(WasiErrno.NOTDIR, f"descriptor {number} is a file")
        return descriptor

    def remove(self, number: int) -> None:
        """Close what a number stands for. Raises BADF, and OSError."""
        descriptor = self.get(number)
        del self._open[number]
        if isinstance(descriptor, File):
            if descriptor.name is None:
                self._handles.release()
            os.close(descriptor.fd)

    def renumber(self, number: int, to: int) -> None:
        """Close ``to``, and have it stand for what ``number`` stood for. Raises BADF unless both are open."""
        self.get(number), self.get(to)
        if number != to:
            self.remove(to)
            self._open[to] = self._open.pop(number)

    def items(self) -> list[tuple[int, Descriptor]]:
        """What is open, by number, in ascending order."""
        return sorted(self._open.items(), key=lambda each: each[0])

    def assign(self, numbers: Mapping[int, Descriptor]) -> None:
        """Give what was granted other numbers, and close what of it gets none."""
        kept = set(map(id, numbers.values()))
        for number, descriptor in list(self._open.items()):
            if id(descriptor) not in kept:
                self.remove(number)
        self._open = dict(numbers)

    def close(self) -> None:
        """Close everything. Idempotent."""
        for number in list(self._open):
            self.remove(number)
