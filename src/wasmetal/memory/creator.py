"""The source of every linear memory of a guest: a region for each."""

from __future__ import annotations

from dataclasses import dataclass

import wasmtime

from wasmetal import wasmtime_c
from wasmetal.errors import MemoryRefusedError
from wasmetal.memory.pages import Pages
from wasmetal.memory.region import Region


class MemoryCreator:
    """Makes a region for each linear memory that a module defines, and finds it again by its address.

    Thread safe: any number of engines, stores and threads may share one.

    Memories that the host makes itself (``wasmtime.Memory(...)``) do not pass through here: Wasmtime has no hook for
    those. Let a module define and export them.

    Run guests on a thread other than the main one. Python raises KeyboardInterrupt in whatever Python code the main
    thread runs next, and if that is a callback from Wasmtime, the callback's answer is lost.
    """

    def __init__(self, max_capacity: int = 64 << 30) -> None:
        """``max_capacity``: bytes, whole pages, that one memory may grow to.

        It matters to memory64 alone, whose declared maximum can be more than any address space holds: what a memory may
        grow to is reserved at once. 64 GiB is more than a guest will fill, and a thousand of them still fit in the 2^47
        bytes of a process.
        """
        self.max_capacity = max_capacity
        # Single operations on a dict are atomic in Python, so no lock is needed.
        self._regions: dict[int, Region] = {}

    def install(self, config: wasmtime.Config) -> None:
        """Make engines of this configuration use this creator; they keep it alive. See :func:`new_engine`."""
        wasmtime_c.set_memory_source(config, self)

    def region_at(self, address: int) -> Region:
        """The region of the live linear memory with this base address (``Memory.data_ptr``). Raises KeyError."""
        return self._regions[address]

    def regions(self) -> list[Region]:
        """The regions of all live linear memories, oldest first; the heap of a guest that uses GC types is one too."""
        return list(self._regions.values())

    def new_memory(self, minimum: int, maximum: int, reserved: int, guard: int) -> _RegionMemory:
        """For Wasmtime: see :class:`wasmtime_c.MemorySource`. Raises MemoryRefusedError."""
        if minimum > self.max_capacity:
            raise MemoryRefusedError(
                f"a memory of {minimum} bytes is over the limit of {self.max_capacity}; raise max_capacity"
            )
        capacity = min(maximum, self.max_capacity)
        # All of ``reserved + guard`` must fault, even if the memory may not grow so far.
        region = Region(capacity, minimum, guard=max(reserved - capacity, 0) + guard)
        self._regions[region.address] = region
        return _RegionMemory(self._regions, region, region.pages)


@dataclass(slots=True)
class _RegionMemory:
    """A region as Wasmtime holds it. It holds the pages itself, in case somebody closes the region."""

    regions: dict[int, Region]
    region: Region
    pages: Pages

    @property
    def address(self) -> int:
        return self.region.address

    @property
    def size(self) -> int:
        return self.region.size

    @property
    def capacity(self) -> int:
        return self.region.capacity

    def grow(self, size: int) -> None:
        self.region.grow(size)

    def drop(self) -> None:
        # Forgotten before it is unmapped: another thread may be given the same address at once.
        del self.regions[self.region.address]
        self.region.close()
