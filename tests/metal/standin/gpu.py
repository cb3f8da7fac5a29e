"""The emulated GPU: its limits, the faults it is told to have, and the work that it has been given.

Work is done only while the host waits for it. Until then everything that it uses must stay, and stay as it is. Command
buffers that wait for no event, and dispatches without a barrier between them, run in reverse.
"""

from __future__ import annotations

import ctypes
import re
import threading
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.metal.standin.bridge import RuleError
from wasmetal.memory.pages import page_size

if TYPE_CHECKING:
    from tests.metal.standin.framework import CommandBuffer, ResidencySet

QUEUE_LENGTH = 64
"""Command buffers that a queue takes before it makes the host wait."""


@dataclass
class Gpu:
    """One GPU. Tests change it as they like, before a device is opened or while it is used."""

    name: str = "emulated Metal"
    working_set: int = 8 << 30
    max_buffer_length: int = 4 << 30
    families: tuple[str, ...] = ("Apple7", "Metal3")
    macos: int = 15
    simd_width: int = 32
    max_threads: int = 1024

    # Faults.
    nil_buffer: bool = False
    """Wraps give nil, as for pages that the kernel will not wire."""
    empty_buffer: bool = False
    """Wraps give a buffer of length zero, as virtual GPUs did before macOS 15."""
    copied_buffer: bool = False
    """Wraps give a buffer elsewhere."""
    stale_files: bool = False
    """Reads of pages that the host cannot write give zeros, as on virtual GPUs before macOS 15."""
    compile_error: str = ""
    """What the compiler says, where it is to fail."""
    pipeline_error: str = ""
    command_error: int = 0
    """The MTLCommandBufferError that command buffers end with."""
    hangs: bool = False
    """It never comes to its work."""
    simdgroups: str = "good"
    """Kernels with simdgroup matrices are "good", compute something "wrong", are "too large", or there are "none"."""
    mps: str = "good"
    """Products by Metal Performance Shaders are "good"; "wrong", computed with "few bits" or from "sums of few bits",
    add to what is "not a number" or write "gaps" between rows; the GPU is "unsupported", or the framework "missing"."""
    indirect: str = "good"
    """Indirect command buffers are "good", there are "none", or they run "without barriers"."""
    has_archives: bool = True
    has_residency: bool = True
    has_queues: bool = True

    compiled: list[str] = field(default_factory=list)
    """Kernels that were compiled for it, not found in an archive."""
    live: dict[int, int] = field(default_factory=dict)
    """Bytes of each buffer that there is, by a number of its own."""
    wired: list[int] = field(default_factory=list)
    """Bytes of each residency set whose residency was requested, one after another, since it was last given up."""
    sets: list[ResidencySet] = field(default_factory=list)
    """The residency sets of the queue that was last given one."""
    _work: list[CommandBuffer] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def give(self, work: CommandBuffer) -> None:
        """Take a command buffer that was committed."""
        with self.lock:
            self._work.append(work)
            if len(self._work) > QUEUE_LENGTH:
                self.progress()

    @property
    def idle(self) -> bool:
        return not self._work

    def progress(self) -> None:
        """Do everything that can be done, whatever does not wait for anything in the unluckiest order."""
        with self.lock:
            while not self.hangs and (ready := [work for work in self._work if work.ready]):
                self._work.remove(ready[-1])
                ready[-1]._run(self)

    def wait(self, seconds: float) -> bool:
        """Have the work done; False if it hangs for so long, or if there is no time.

        What this machine needs for the work does not count: a GPU is fast, even if this machine is slow or busy.
        """
        if self.hangs:
            time.sleep(seconds)
            return False
        if seconds:
            self.progress()
        return seconds > 0


class Watch:
    """Bytes that must not change until the GPU comes to them."""

    LIMIT = 64 << 20

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        self._ranges = ranges if sum(nbytes for _, nbytes in ranges) <= self.LIMIT else []
        self._seen = self._sums()

    def check(self) -> None:
        if self._sums() != self._seen:
            raise RuleError("a buffer was changed by the host while it was in flight")

    def _sums(self) -> list[int]:
        return [zlib.adler32(memory(address, nbytes)) for address, nbytes in self._ranges]


def memory(address: int, nbytes: int) -> memoryview:
    """The bytes at an address."""
    return memoryview((ctypes.c_uint8 * nbytes).from_address(address)).cast("B")


_MAPPINGS = {write: re.compile(rb"^(\w+)-(\w+) r" + b"w" * write, re.MULTILINE) for write in (False, True)}
"""The bounds of mappings that can be read, or also written, in /proc/self/maps."""


def accessible(ranges: list[tuple[int, int]], write: bool) -> bool:
    """Whether this process can read, or also write, every byte of all ranges."""
    maps = Path("/proc/self/maps").read_bytes()
    mappings = [(int(start, 16), int(stop, 16)) for start, stop in _MAPPINGS[write].findall(maps)]
    for address, nbytes in ranges:
        at = address
        for start, stop in mappings:
            if start <= at < stop:
                at = stop
        if at < address + nbytes:
            return False
    return True


def page_aligned(value: int) -> bool:
    return value % page_size() == 0
