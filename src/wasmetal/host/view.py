"""A guest's memory as the host sees it: the one place where pointers, lengths and alignment are checked.

Values arrive as Python integers, so sums and products do not wrap.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from wasmetal.host.errno import Errno, Refusal
from wasmetal.memory import Aperture, Region

_BYTE = np.dtype(np.uint8)


class GuestMemory:
    """Checked access to one guest's linear memory.

    Views are writable and see the guest's bytes themselves; they are valid during one host call only.
    """

    def __init__(self, region: Region, memory64: bool) -> None:
        self._region = region
        self._size_dtype = np.dtype("<u8" if memory64 else "<u4")

    @property
    def region(self) -> Region:
        """The memory's region."""
        return self._region

    def array(self, ptr: int, count: int, dtype: DTypeLike = np.uint8) -> NDArray[Any]:
        """``count`` elements at ``ptr``, aligned as C aligns them. INVAL if misaligned, FAULT if outside the memory."""
        if dtype is np.uint8:
            return self.raw(ptr, count, _BYTE)
        element = np.dtype(dtype)
        return self.raw(ptr, count, element).view(element)

    def raw(self, ptr: int, count: int, element: np.dtype[Any]) -> NDArray[np.uint8]:
        """The bytes of what :meth:`array` returns. Viewing them as records would take longer than to get them."""
        return self.part(ptr, count * element.itemsize, element.alignment)

    def part(self, ptr: int, nbytes: int, align: int) -> NDArray[np.uint8]:
        """The bytes at ``ptr``, a multiple of ``align``. INVAL if it is none, FAULT if they leave the memory."""
        region = self._region
        if ptr % align or ptr + nbytes > region.size:
            self._check(ptr, nbytes, align)
        return region.part(ptr, ptr + nbytes)

    def size(self, ptr: int) -> NDArray[Any]:
        """One ``size_t`` to write: an element as wide as the guest's addresses."""
        return self.array(ptr, 1, self._size_dtype)

    def pages(self, ptr: int, nbytes: int, page_size: int) -> Aperture:
        """A whole number of pages (at least one), starting at a page. INVAL or FAULT otherwise."""
        if nbytes == 0 or nbytes % page_size:
            raise Refusal(Errno.INVAL, f"length {nbytes} is not a positive multiple of the page size {page_size}")
        self._check(ptr, nbytes, page_size)
        return self._region.aperture(ptr, nbytes)

    def covering(self, ptr: int, nbytes: int, align: int, page_size: int) -> Aperture:
        """The pages around a byte range (at least one byte) that begins at a multiple of ``align``."""
        self._check(ptr, nbytes, align)
        start = ptr // page_size * page_size
        end = -(-(ptr + nbytes) // page_size) * page_size
        return self._region.aperture(start, end - start)

    def _check(self, ptr: int, nbytes: int, align: int) -> None:
        if ptr % align:
            raise Refusal(Errno.INVAL, f"pointer {ptr:#x} is not a multiple of {align}")
        if ptr + nbytes > self._region.size:
            raise Refusal(Errno.FAULT, f"{nbytes} bytes at {ptr:#x} leave the memory of {self._region.size} bytes")
