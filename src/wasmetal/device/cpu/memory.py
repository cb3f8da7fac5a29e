"""Memory of the CPU device: host pages.

An operating system allows a process a limited number of mappings (65,530 by default on Linux). So small allocations
share mappings, in slots of whole pages; a large one has its own. Mappings are private: a forked process gets copies.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
import weakref
from collections import deque

import numpy as np

from wasmetal.device.base import Bytes
from wasmetal.errors import OutOfDeviceMemoryError
from wasmetal.memory.pages import page_size

_SMALL = 256 << 10
"""Bytes of the largest allocation that shares a mapping."""
_SLAB = 4 << 20
"""Bytes of a shared mapping. Pages that were never written to, or were returned, take no memory."""


class Pages:
    """Page-aligned host memory, allocated or wrapped. The array keeps the bytes mapped."""

    def __init__(self, data: Bytes) -> None:
        self._data = data
        self.address = data.ctypes.data
        self.device_address = self.address

    def view(self) -> Bytes:
        """The bytes, a one-dimensional uint8 array."""
        return self._data


class _Slab:
    """A mapping with slots of one size. A slot is taken until no view of it is left, and then zero again."""

    def __init__(self, size: int) -> None:
        self._mapping = _map(_SLAB)
        self._size = size
        self._count = _SLAB // size
        self.free = deque(range(0, self._count * size, size))

    @property
    def unused(self) -> bool:
        """Whether no slot is taken."""
        return len(self.free) == self._count

    def take(self, nbytes: int) -> Bytes:
        """A free slot's first ``nbytes``."""
        slot = self.free.popleft()
        data = np.frombuffer(self._mapping, np.uint8, nbytes, slot)
        weakref.finalize(data, self._give_back, slot).atexit = False
        return data

    def _give_back(self, slot: int) -> None:
        # Without a lock, which a finalizer must not wait for. Appending to a deque is atomic.
        if sys.platform == "linux":
            self._mapping.madvise(mmap.MADV_DONTNEED, slot, self._size)  # The next access finds zeros.
        else:
            self._mapping[slot : slot + self._size] = bytes(self._size)
        self.free.append(slot)


class _Slabs:
    """The slabs of this process."""

    def __init__(self) -> None:
        self._start_anew()
        os.register_at_fork(after_in_child=self._start_anew)

    def take(self, size: int, nbytes: int) -> Bytes:
        """The first ``nbytes`` of a slot of ``size``."""
        with self._lock:
            slabs = self._by_size.setdefault(size, [])
            slab = next((each for each in slabs if each.free), None)
            if slab is None:
                slab = _Slab(size)
                slabs.append(slab)
            data = slab.take(nbytes)
            slabs[:] = [each for each in slabs if each is slab or not each.unused]
        return data

    def _start_anew(self) -> None:
        # A thread of the parent may have held the lock when this process was forked.
        self._lock = threading.Lock()
        self._by_size: dict[int, list[_Slab]] = {}


_slabs = _Slabs()


def allocate(nbytes: int) -> Pages:
    """New zero-filled pages. Raises OutOfDeviceMemoryError."""
    size = -(-nbytes // page_size()) * page_size()
    try:
        return Pages(np.frombuffer(_map(nbytes), np.uint8) if size > _SMALL else _slabs.take(size, nbytes))
    except (OSError, ValueError, OverflowError) as error:
        raise OutOfDeviceMemoryError(f"{nbytes} bytes of host memory: {error}; free some memory") from error


def _map(nbytes: int) -> mmap.mmap:
    return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
