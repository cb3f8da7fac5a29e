"""Regions: address ranges whose growing first part is memory and whose rest faults."""

from __future__ import annotations

from operator import index
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wasmetal.errors import MemoryRefusedError
from wasmetal.memory.aperture import Aperture
from wasmetal.memory.pages import Pages, page_size


class Region:
    """Owns pages: ``size`` accessible bytes at ``address``, which can grow to ``capacity``, then a guard.

    ::

        address            + size              + capacity          + guard
        | read and write   | faults until grown | always faults     |

    The bytes are initially zero and never move. The pages are shared by reference: the region, its apertures, the
    arrays viewing them and a Wasm instance that runs on them each hold them, and they are unmapped when the last of
    these is gone. So they may be closed or dropped in any order.

    Linear memories of guests have a guard of ``GUARD`` bytes, after at least ``RESERVATION`` bytes: see
    :mod:`wasmetal.memory.wasmtime_engine`.
    """

    def __init__(self, capacity: int, size: int = 0, guard: int = 0) -> None:
        """Reserve ``capacity + guard`` bytes and open the first ``size``, all of them whole host pages.

        Raises MemoryRefusedError: not whole pages, ``size`` over ``capacity``, or the system has no room.
        """
        capacity, guard = _whole_pages("capacity", capacity), _whole_pages("guard", guard)
        self._pages: Pages | None = Pages(capacity + guard)
        self.address: Final = self._pages.address
        self.capacity: Final = capacity
        self._size = 0
        self._view: NDArray[np.uint8] | None = None
        self.grow(size)

    @property
    def size(self) -> int:
        """Accessible bytes."""
        return self._size

    @property
    def pages(self) -> Pages:
        """The pages, guard included; they stay mapped while the caller holds them. Raises MemoryRefusedError."""
        if self._pages is None:
            raise MemoryRefusedError("the region is closed; use it before its guest or owner is closed")
        return self._pages

    def grow(self, size: int) -> None:
        """Make the first ``size`` bytes accessible, in place. If that fails, nothing changes.

        Raises MemoryRefusedError: past the capacity, smaller than now, not whole pages, or the system has no memory.
        """
        size = _whole_pages("size", size)
        if not self._size <= size <= self.capacity:
            raise MemoryRefusedError(
                f"a region of {self._size} bytes cannot become {size}: it can only grow, to {self.capacity} at most"
            )
        pages = self.pages
        if size > self._size:
            pages.open(self._size, size)
            self._size, self._view = size, None

    def map(self, descriptor: int, begin: int, end: int) -> None:
        """Replace whole pages inside ``size`` by those of a file at the same place, copy on write.

        For a region that nobody else uses yet. What is written to that part of the file later may show. The pages stay
        mapped if the file is closed. Raises MemoryRefusedError; the region is to be closed then.
        """
        begin, end = _whole_pages("offset", begin), _whole_pages("end", end)
        self._check_inside(begin, end - begin)
        self.pages.map(descriptor, begin, end)

    def populate(self, begin: int, end: int) -> None:
        """Whole pages inside ``size`` are to be written: have the system give them memory at once, where it can."""
        self.pages.populate(begin, end)

    def view(self) -> NDArray[np.uint8]:
        """The accessible bytes as they are now, uint8 of shape [size], not copied. It keeps the pages mapped."""
        return self.part(0, self._size)

    def part(self, begin: int, end: int) -> NDArray[np.uint8]:
        """Some of the bytes of :meth:`view`, which must be inside."""
        view = self._view
        if view is None:
            # Two threads may both make one; a view that growth has left too short is not kept.
            size = self._size
            view = self.pages.view(0, size)
            if size == self._size and self._pages is not None:
                self._view = view
        return view[begin:end]

    def aperture(self, offset: int, nbytes: int) -> Aperture:
        """Borrow ``nbytes`` > 0 from ``offset`` on: whole pages, inside ``size``, or MemoryRefusedError is raised."""
        # NumPy's integers would wrap around in the sums below; Python's do not.
        offset, nbytes = index(offset), index(nbytes)
        self._check_inside(offset, nbytes)
        return Aperture(self, _whole_pages("offset", offset), _whole_pages("length", nbytes))

    def covering(self, offset: int, nbytes: int) -> Aperture:
        """Borrow the fewest pages that hold the ``nbytes`` > 0 from ``offset`` on. Raises MemoryRefusedError."""
        offset, nbytes = index(offset), index(nbytes)
        self._check_inside(offset, nbytes)
        page = page_size()
        start = offset // page * page
        end = -(-(offset + nbytes) // page) * page  # still inside: the size is a whole number of pages
        return Aperture(self, start, end - start)

    def close(self) -> None:
        """Release the pages; they are unmapped once nothing else holds them. Idempotent."""
        self._pages = self._view = None

    def _check_inside(self, offset: int, nbytes: int) -> None:
        if offset < 0 or nbytes <= 0 or offset + nbytes > self._size:
            raise MemoryRefusedError(
                f"{nbytes} bytes at {offset} are not inside a memory of {self._size} bytes; ask for 1 or more inside"
            )


def _whole_pages(what: str, nbytes: int) -> int:
    nbytes = index(nbytes)
    if nbytes < 0 or nbytes % page_size():
        raise MemoryRefusedError(
            f"a {what} of {nbytes} bytes is refused: use a multiple of the page size, {page_size()}"
        )
    return nbytes
