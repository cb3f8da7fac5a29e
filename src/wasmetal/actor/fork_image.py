"""Memory of forks, copy on write: pages go to a file in memory once, and each fork maps them privately.

Only where nothing but this process's own code reads the forks' pages. A device that imports host pages may refuse those
of a mapped file (Linux's amdgpu does), or an aperture that is part of such a mapping and part not (Metal does); and the
actor's own pages cannot be mapped anew for its forks' sake, since a device may have them already.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Final

from wasmetal.actor.memory_image import PAGE, equal
from wasmetal.device.base import Bytes, Device
from wasmetal.errors import MemoryRefusedError
from wasmetal.memory import Region
from wasmetal.memory.mapped import map_file

_MOST_RUNS: Final = 32
"""Ranges of a memory that are mapped: a process may have 65,530 mappings."""

Differing = Sequence[tuple[int, Bytes | None]]
"""Pages of a memory as :meth:`MemoryImage.differing` gives them."""


def can_map(device: Device | None) -> bool:
    """Whether pages of an actor with this device may be those of a mapped file, and the system has files in memory."""
    return hasattr(os, "memfd_create") and (device is None or device.info.backend == "cpu")


def copy_pages(memory: Region, pages: Differing) -> int:
    """Copy pages into a memory: how many there were."""
    view = memory.view()
    for page, data in pages:
        view[page * PAGE : (page + 1) * PAGE] = 0 if data is None else data
    return len(pages)


class ForkImage:
    """Pages of one memory of an actor and its forks, each at its place. Any thread may use it."""

    def __init__(self, nbytes: int) -> None:
        """``nbytes``: of the memory. Raises OSError, and MemoryRefusedError if it cannot be mapped."""
        self.nbytes: Final = nbytes
        self._file = os.memfd_create("wasmetal-fork", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self._file).atexit = False
        os.ftruncate(self._file, nbytes)
        self._bytes = map_file(self._file, nbytes)
        self._has: set[int] = set()
        """Pages, which never change."""
        self._lock = Lock()

    def add(self, pages: Differing) -> int:
        """Add the pages that it does not have: how many. Raises OSError if the system has no memory."""
        added = 0
        with self._lock:
            for page, data in pages:
                if data is not None and page not in self._has:
                    if os.pwrite(self._file, data.data, page * PAGE) != PAGE:
                        raise OSError("a page was not written whole")
                    self._has.add(page)
                    added += 1
        return added

    def give(self, memory: Region, pages: Differing) -> int:
        """Make these pages a new memory's: how many were copied, since they are other than the image's.

        They were added before. Raises MemoryRefusedError if the system does not map them.
        """
        runs: list[list[int]] = []
        copied: list[tuple[int, Bytes | None]] = []
        for page, data in pages:
            if data is None or not equal(self._page(page), data):
                copied.append((page, data))
            elif runs and runs[-1][1] == page:
                runs[-1][1] += 1
            else:
                runs.append([page, page + 1])
        runs.sort(key=lambda run: run[0] - run[1])  # the longest first
        for first, end in runs[:_MOST_RUNS]:
            memory.map(self._file, first * PAGE, end * PAGE)
        copied += [(page, self._page(page)) for first, end in runs[_MOST_RUNS:] for page in range(first, end)]
        return copy_pages(memory, copied)

    def _page(self, page: int) -> Bytes:
        return self._bytes[page * PAGE : (page + 1) * PAGE]


class ForkImages:
    """The images of an actor's memories: those that its own pages are from, and what its latest forks have."""

    def __init__(self) -> None:
        self._own: dict[int, ForkImage] = {}
        self._latest: weakref.WeakValueDictionary[int, ForkImage] = weakref.WeakValueDictionary()
        """There as long as one of the forks is."""

    def adopt(self, images: Mapping[int, ForkImage]) -> None:
        """The actor is a fork, whose memories have pages of these images."""
        self._own.update(images)
        self._latest.update(images)

    def clear(self) -> None:
        """The actor is closed."""
        self._own.clear()

    def give(self, index: int, memory: Region, pages: Differing, fork: dict[int, ForkImage]) -> int:
        """Make these pages a new memory's: how many were copied, for it or for those to come.

        ``fork`` gets the image that the memory has pages of then, if there is one. Raises MemoryRefusedError if the
        system does not map them.
        """
        image = self._latest.get(index)
        try:
            if image is None or image.nbytes < memory.size:
                image = ForkImage(memory.size)
            added = image.add(pages)
        except (OSError, MemoryRefusedError):
            return copy_pages(memory, pages)
        copied = image.give(memory, pages)
        fork[index] = image
        if copied <= len(pages) // 2:
            self._latest[index] = image
        else:  # most of them have changed: the next fork gets a new one
            self._latest.pop(index, None)
        return added + copied
