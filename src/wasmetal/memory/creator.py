"""The source of guests' linear memories: a region for each."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import wasmtime

from wasmetal import wasmtime_c
from wasmetal.errors import MemoryRefusedError, MemorySizeError
from wasmetal.memory.pages import Pages, page_size
from wasmetal.memory.region import Region


class Budget:
    """Bytes that the linear memories of one guest may take together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, nbytes: int) -> None:
        """Count ``nbytes`` more. Raises MemorySizeError over the limit."""
        if self.used + nbytes > self.limit:
            raise MemorySizeError(f"{self.used} + {nbytes} bytes of linear memory are over the limit of {self.limit}")
        self.used += nbytes


class _Current(threading.local):
    budget: Budget | None = None


class MemoryCreator:
    """Makes a region for each linear memory that a module defines, and finds regions by address.

    Thread safe: any number of engines, stores and threads may share one.

    Memories that the host makes itself (``wasmtime.Memory(...)``) do not pass through here: Wasmtime has no hook for
    those. Let a module define and export them.

    Run guests on a thread other than the main one. Python raises KeyboardInterrupt in whatever Python code the main
    thread runs next, and if that is a callback from Wasmtime, the callback's answer is lost.
    """

    def __init__(self, max_capacity: int = 64 << 30) -> None:
        """``max_capacity``: bytes, whole pages, that one memory may grow to.

        The whole capacity is reserved when the memory is made. A memory64 can declare a maximum larger than any address
        space; 64 GiB is more than a guest will fill, and a thousand such memories still fit in a process's 2^47 bytes.
        """
        self.max_capacity = max_capacity
        # Single operations on a dict are atomic in Python, so no lock is needed.
        self._regions: dict[int, Region] = {}
        self._current = _Current()

    def install(self, config: wasmtime.Config) -> None:
        """Make engines of this configuration use this creator; they keep it alive. See :func:`new_engine`."""
        wasmtime_c.set_memory_source(config, self)

    @contextmanager
    def charging(self, budget: Budget) -> Iterator[None]:
        """Charge the memories that this thread makes meanwhile, and whatever they grow by later, to a budget."""
        self._current.budget = budget
        try:
            yield
        finally:
            self._current.budget = None

    def region_at(self, address: int) -> Region:
        """The region of the live linear memory with this base address (``Memory.data_ptr``). Raises KeyError."""
        return self._regions[address]

    def regions(self) -> list[Region]:
        """The regions of all live linear memories, oldest first; the GC heap of a guest counts too."""
        return list(self._regions.values())

    def new_memory(self, minimum: int, maximum: int, reserved: int, guard: int) -> _RegionMemory:
        """For Wasmtime: see :class:`wasmtime_c.MemorySource`. Raises MemoryRefusedError."""
        if minimum > self.max_capacity:
            raise MemoryRefusedError(
                f"a memory of {minimum} bytes is over the limit of {self.max_capacity}; raise max_capacity"
            )
        capacity = min(maximum, self.max_capacity)
        budget = self._current.budget
        if budget:
            budget.take(minimum)
            capacity = min(capacity, budget.limit // page_size() * page_size())
        # Everything up to ``reserved + guard`` must fault, even if the memory may not grow that far.
        region = Region(capacity, minimum, guard=max(reserved - capacity, 0) + guard)
        self._regions[region.address] = region
        return _RegionMemory(self._regions, region, region.pages, budget)


@dataclass(slots=True)
class _RegionMemory:
    """A region as Wasmtime holds it, with its own reference to the pages in case the region is closed."""

    regions: dict[int, Region]
    region: Region
    pages: Pages
    budget: Budget | None

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
        more = size - self.region.size
        if self.budget:
            self.budget.take(more)
        try:
            self.region.grow(size)
        except BaseException:
            if self.budget:
                self.budget.used -= more
            raise

    def drop(self) -> None:
        # Removed before it is unmapped: another thread may be given the same address immediately.
        del self.regions[self.region.address]
        self.region.close()
