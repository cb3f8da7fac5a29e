"""Copies of one size that come and go on many threads, kept outside the C library's heaps.

glibc has up to eight heaps for each core, hands out pieces of less than 128 KiB from that of the calling thread, and a
heap gets holes: with copies of pages in them they grew to twice and three times what was in use.
"""

from __future__ import annotations

import mmap
import sys
import weakref
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wasmetal.memory.pages import Pages, array_over, madvise

_SLAB: Final = 4 << 20
"""Bytes that are mapped at a time, and stay mapped: a process may have 65,530 mappings."""
_GIVE_BACK: Final = mmap.MADV_FREE if sys.platform == "darwin" else mmap.MADV_DONTNEED


class Copies:
    """Makes copies of ``nbytes`` each. Any thread may use it."""

    def __init__(self, nbytes: int, warm: int) -> None:
        """``nbytes``: whole pages, at most 4 MiB. ``warm``: freed places that keep their memory for the next copies."""
        self._nbytes, self._most = nbytes, warm
        self._slabs: list[Pages] = []
        # Appending to a list and popping from it need no lock, which those who free copies could not take.
        self._warm: list[int] = []
        self._cold: list[int] = []
        """Addresses, whose memory the system has."""

    def copy(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A copy of ``nbytes`` bytes, read-only. Raises MemoryRefusedError if the system has no memory."""
        address = self._place()
        lent = _Lent()
        array_over(address, self._nbytes, None)[:] = data
        weakref.finalize(lent, self._free, address).atexit = False
        return array_over(address, self._nbytes, lent, writable=False)

    def _place(self) -> int:
        while True:
            for places in (self._warm, self._cold):
                try:
                    return places.pop()
                except IndexError:
                    pass
            slab = Pages(_SLAB)
            slab.open(0, _SLAB)
            self._slabs.append(slab)
            self._cold.extend(range(slab.address, slab.address + _SLAB - self._nbytes + 1, self._nbytes))

    def _free(self, address: int) -> None:
        if len(self._warm) < self._most:
            self._warm.append(address)
        else:
            madvise(address, self._nbytes, _GIVE_BACK)
            self._cold.append(address)


class _Lent:
    """What arrays over a copy refer to."""
