"""Which pages of a linear memory differ from what the program began with.

A page is WebAssembly's, 64 KiB: a memory is always a whole number of them, the list of pages of a large memory stays
short, and each is one chunk, which a store may keep as a file. Smaller pieces would save bytes, but cost more files.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wasmetal.device.base import Bytes

PAGE = 1 << 16
_ZEROS = np.zeros(PAGE, np.uint8)


class MemoryImage:
    """The pages of one memory that are not zero when an instance is new."""

    def __init__(self, memory: Bytes) -> None:
        """``memory``: the bytes of a new instance's, of which a copy is kept."""
        self._pages: dict[int, Bytes] = {}
        for index, page in _pages(memory):
            if page.any():
                self._pages[index] = page.copy()

    def differing(self, memory: Bytes) -> Iterator[tuple[int, Bytes | None]]:
        """The pages of a memory that are not as in the image: (index, bytes); None if all of them are zero."""
        for index, page in _pages(memory):
            initial = self._pages.get(index)
            if not equal(page, _ZEROS if initial is None else initial):
                yield index, None if initial is not None and equal(page, _ZEROS) else page


def _pages(memory: Bytes) -> Iterator[tuple[int, Bytes]]:
    for index in range(len(memory) // PAGE):
        yield index, memory[index * PAGE : (index + 1) * PAGE]


def equal(a: Bytes, b: Bytes) -> bool:
    """Whether two arrays of bytes, uint8 of shape [n], are equal."""
    if a.size != b.size:
        return False
    whole = a.size // 8 * 8
    return bool((a[:whole].view(np.uint64) == b[:whole].view(np.uint64)).all()) and bool((a[whole:] == b[whole:]).all())
