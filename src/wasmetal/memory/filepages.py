"""The pages of a file that is mapped read-only, for devices that can use them in place."""

from __future__ import annotations

import mmap
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wasmetal.memory.pages import array_over, page_size


class FilePages:
    """All pages of a mapping, which stays mapped while this object, or an array of its bytes, exists."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._bytes = np.frombuffer(mapped, np.uint8)
        self.address: Final[int] = self._bytes.ctypes.data
        """Host address of the file's first byte; a multiple of the page size."""
        self.nbytes: Final = -(-self._bytes.size // page_size()) * page_size()
        """Length in bytes, whole pages. Bytes past the end of the file are zero."""

    def view(self) -> NDArray[np.uint8]:
        """The bytes themselves, uint8 of shape [nbytes], read-only, not copied."""
        return array_over(self.address, self.nbytes, self, writable=False)
