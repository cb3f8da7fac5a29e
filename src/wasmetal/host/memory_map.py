"""What a guest's memory is used for, for people who watch it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wasmetal.errors import MemoryRefusedError
from wasmetal.host.commands import GuestBuffer
from wasmetal.host.functions.llm import OpenSession
from wasmetal.host.handles import Handles
from wasmetal.host.view import GuestMemory
from wasmetal.memory import page_size

UNTOUCHED, USED, SHARED = 0, 1, 2
"""A page that takes no room yet; one that does; one in an aperture, which the device sees."""


@dataclass(frozen=True, slots=True)
class MemoryMap:
    """A guest's linear memory at one moment."""

    nbytes: int
    """Its size; it may grow."""
    apertures: tuple[tuple[int, int], ...]
    """The ranges that the device sees, as (address, bytes), in ascending order."""
    pages: NDArray[np.uint8]
    """UNTOUCHED, USED or SHARED of each host page: [nbytes // page_size()]."""

    def cells(self, most: int) -> list[int]:
        """The same, for a picture of at most ``most`` > 0 cells, each of which stands for as many pages: the largest of
        their values."""
        each = max(1, -(-len(self.pages) // most))
        padded = np.pad(self.pages, (0, -len(self.pages) % each))
        found: list[int] = padded.reshape(-1, each).max(axis=1, initial=UNTOUCHED).tolist()
        return found


def memory_map(memory: GuestMemory, handles: Handles) -> MemoryMap | None:
    """A guest's memory now, and what of it the objects that it holds share. From any thread; None if it has gone."""
    try:
        nbytes = memory.region.size
        pages = memory.region.pages.resident(nbytes).astype(np.uint8)
    except MemoryRefusedError:
        return None
    apertures = tuple(sorted({(ptr, size) for ptr, size in _shared(handles) if ptr + size <= nbytes}))
    for ptr, size in apertures:
        pages[ptr // page_size() : (ptr + size) // page_size()] = SHARED
    return MemoryMap(nbytes, apertures, pages)


def _shared(handles: Handles) -> Iterator[tuple[int, int]]:
    for held in handles:
        if isinstance(held, GuestBuffer) and held.shared:
            yield held.offset, held.buffer.nbytes
        elif isinstance(held, OpenSession) and (logits := held.logits):
            # Between two reads another array may have taken its place: then this is not a whole page.
            ptr = held.logits_at - logits.offset
            if ptr >= 0 and ptr % page_size() == 0:
                yield ptr, logits.buffer.nbytes
