"""Host pages: reserved with mmap, opened with mprotect, released with munmap.

Python's own ``mmap`` class cannot do this (it neither reserves without access nor changes protection), so the C library
is called through ``ctypes``. 64-bit Linux and macOS, on which ``off_t`` is ``long``.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wasmetal.errors import AddressSpaceError, MemoryRefusedError

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_mprotect = _libc.mprotect
_mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_munmap = _libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)

madvise = _libc.madvise
"""The C library's."""
madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_mincore = _libc.mincore
_mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)

_PROT_NONE = 0
_MAP_FAILED = ctypes.c_void_p(-1).value
# Reserved pages must not count as used memory. The constant is missing from ``mmap`` before Python 3.13.
_MAP_NORESERVE = 0x40 if sys.platform == "darwin" else 0x4000
_MAP_FIXED = 0x10
_POPULATE_WRITE = 23
"""Linux's MADV_POPULATE_WRITE, since 5.14 (include/uapi/asm-generic/mman-common.h)."""
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE


_PAGE_SIZE = max(mmap.PAGESIZE, int(os.environ.get("WASMETAL_TEST_PAGE_SIZE", "0")))
"""For tests only, a larger power of two can be had: so 16 KiB pages are tested on machines that have 4 KiB ones."""


def page_size() -> int:
    """The host's page size in bytes: 16 KiB on Apple silicon, 4 KiB on most Linux machines."""
    return _PAGE_SIZE


class Pages:
    """A reserved address range. Its bytes fault until they are opened; they are zero then.

    The range is unmapped when nothing refers to this object any more, so whoever uses the addresses must hold a
    reference. Arrays from :meth:`view` hold one.
    """

    def __init__(self, nbytes: int) -> None:
        """Reserve ``nbytes`` > 0 of address space. Raises AddressSpaceError if the system has none left."""
        # ctypes would silently truncate a longer integer to 64 bits.
        if not 0 < nbytes <= sys.maxsize:
            raise MemoryRefusedError(
                f"cannot reserve {nbytes} bytes: ask for at least one page, and less than 2^63 bytes"
            )
        reserved = nbytes + page_size() - mmap.PAGESIZE  # the system aligns to its own pages
        address = _mmap(None, reserved, _PROT_NONE, _FLAGS, -1, 0)
        if address == _MAP_FAILED:
            reason = os.strerror(ctypes.get_errno())
            raise AddressSpaceError(
                f"cannot reserve {nbytes} bytes of address space: {reason}; close other guests, or raise `ulimit -v`"
            )
        self.address: Final[int] = -(-address // page_size()) * page_size()
        self.nbytes: Final = nbytes
        # Not at exit: the system unmaps everything then, and other threads may still be using the pages.
        weakref.finalize(self, _munmap, address, reserved).atexit = False

    def open(self, start: int, end: int) -> None:
        """Make the whole pages in [start, end) readable and writable. Raises MemoryRefusedError."""
        if _mprotect(self.address + start, end - start, mmap.PROT_READ | mmap.PROT_WRITE):
            reason = os.strerror(ctypes.get_errno())
            raise MemoryRefusedError(
                f"cannot open {end - start} bytes of memory: {reason}; close other programs, or lower the guest's limit"
            )

    def populate(self, start: int, end: int) -> None:
        """Have the system give memory to the opened pages [start, end) at once, where it can: they are to be written.

        It takes a fraction of the time of as many page faults.
        """
        if sys.platform == "linux":
            madvise(self.address + start, end - start, _POPULATE_WRITE)

    def map(self, descriptor: int, start: int, end: int) -> None:
        """Replace the opened pages [start, end) by those of a file, copy on write. Raises MemoryRefusedError."""
        flags = mmap.MAP_PRIVATE | _MAP_FIXED
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        if _mmap(self.address + start, end - start, protection, flags, descriptor, start) == _MAP_FAILED:
            reason = os.strerror(ctypes.get_errno())
            raise MemoryRefusedError(f"cannot map {end - start} bytes of a file: {reason}; close other guests")

    def resident(self, nbytes: int) -> NDArray[np.bool_]:
        """Of each host page in the first ``nbytes``, which are whole pages, whether it takes room in memory.

        bool [nbytes // page_size()]; all True if the system does not tell.
        """
        found = np.full(nbytes // mmap.PAGESIZE, 1, np.uint8)
        if nbytes and _mincore(self.address, nbytes, found.ctypes.data):
            found[:] = 1
        whole = (found & 1).reshape(nbytes // page_size(), page_size() // mmap.PAGESIZE)
        resident: NDArray[np.bool_] = np.any(whole, axis=1)
        return resident

    def view(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """Opened bytes as a writable array, not copied. It, and every array made from it, keeps the pages mapped."""
        return array_over(self.address + offset, nbytes, self)


def array_over(address: int, nbytes: int, owner: object, writable: bool = True) -> NDArray[np.uint8]:
    """Memory as an array, uint8 of shape [nbytes]. The array, and every one made from it, keeps the owner alive."""
    return np.asarray(_Memory(address, nbytes, owner, writable))


class _Memory:
    """What NumPy makes an array of (its array interface protocol). The array's ``base`` is this object."""

    def __init__(self, address: int, nbytes: int, owner: object, writable: bool) -> None:
        self._owner = owner
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "typestr": "|u1",
            "shape": (nbytes,),
            "data": (address, not writable),
        }
