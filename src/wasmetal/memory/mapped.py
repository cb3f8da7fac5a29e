"""Files mapped without keeping a descriptor, so that a process can have many mapped at a time."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref

import numpy as np
from numpy.typing import NDArray

from wasmetal.errors import MemoryRefusedError
from wasmetal.memory.pages import _MAP_FAILED, _mmap, _munmap, array_over


def map_file(descriptor: int, nbytes: int) -> NDArray[np.uint8]:
    """The first ``nbytes`` > 0 of an open file, read-only, uint8 of shape [nbytes], from its first page on.

    Pages are read when they are touched. They stay mapped, also after the file is closed or removed, as long as the
    array or one made from it exists. Nobody may shorten the file meanwhile: touching what is gone ends the process.
    Raises MemoryRefusedError if the system refuses.
    """
    address = _mmap(None, nbytes, mmap.PROT_READ, mmap.MAP_PRIVATE, descriptor, 0)
    if address == _MAP_FAILED:
        reason = os.strerror(ctypes.get_errno())
        raise MemoryRefusedError(f"cannot map {nbytes} bytes of a file: {reason}; close other guests or actors")
    return array_over(address, nbytes, _Mapping(address, nbytes), writable=False)


class _Mapping:
    """Unmaps the pages when nothing refers to it any more."""

    def __init__(self, address: int, nbytes: int) -> None:
        # Not at exit: the system unmaps everything then, and other threads may still be using the pages.
        weakref.finalize(self, _munmap, address, nbytes).atexit = False
