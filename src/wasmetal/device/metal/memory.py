"""Pages as Metal buffers: wrapped where they lie, whether a guest's, a file's or the device's own."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from wasmetal.device.base import Bytes, HostPages
from wasmetal.device.hostpages import find_obstacle
from wasmetal.device.metal.api import mtl
from wasmetal.device.metal.parts import Parts
from wasmetal.device.metal.queue import Queue
from wasmetal.errors import MemoryRefusedError, OutOfDeviceMemoryError, WrapRefusedError
from wasmetal.memory.pages import Pages, page_size

_OPTIONS: int = (
    # Untracked: barriers and the queue's event order the work, by address, which Metal's own tracking cannot.
    mtl.MTLResourceStorageModeShared | mtl.MTLResourceHazardTrackingModeUntracked
)


class Allocation:
    """Whole pages as Metal buffers; both go, the buffers first, when nothing refers to it any more.

    Recorded commands, work under way and NumPy views refer to it or to the pages, so they outlive a ``Buffer`` that was
    closed before them.
    """

    def __init__(self, queue: Queue, pages: Bytes) -> None:
        """Wrap ``pages``, uint8 of a whole number of pages. Raises WrapRefusedError where Metal will not."""
        physical = queue.physical
        self.queue = queue
        self.nbytes = pages.size
        self.address = pages.ctypes.data
        self._pages = pages
        self._parts = Parts(pages.size, physical.max_buffer_bytes, physical.info.max_binding_bytes)
        ranges = [self._parts.range(part) for part in range(len(self._parts))]
        self._buffers = [_wrap(physical.handle, pages[start:stop]) for start, stop in ranges]
        self.device_address: int | None = int(self._buffers[0].gpuAddress()) or None
        queue.residency.add(self._buffers)
        weakref.finalize(self, _release, queue, self._buffers, pages).atexit = False

    def bind(self, offset: int) -> tuple[Any, int]:
        """The ``MTLBuffer`` for a binding that begins at an offset, and where in it that is."""
        part = self._parts.holding(offset)
        return self._buffers[part], offset - self._parts.range(part)[0]

    def view(self) -> Bytes:
        """The bytes, uint8 of shape [nbytes]."""
        return self._pages


def _wrap(device: Any, pages: Bytes) -> Any:
    """An ``MTLBuffer`` over pages, proved to be over them and no others."""
    buffer = device.newBufferWithBytesNoCopy_length_options_deallocator_(pages, pages.size, _OPTIONS, None)
    where = f"{pages.size} bytes of host pages at {pages.ctypes.data:#x}"
    if buffer is None:
        raise WrapRefusedError(f"{where}: Metal made no buffer of them")
    if buffer.length() != pages.size:
        raise WrapRefusedError(f"{where}: Metal's buffer has {buffer.length()} bytes; this macOS cannot share pages")
    contents = buffer.contents()
    seen = np.frombuffer(contents.as_buffer(pages.size), np.uint8).ctypes.data if contents is not None else 0
    if seen != pages.ctypes.data:
        raise WrapRefusedError(f"{where}: Metal's buffer is at {seen:#x}, so it would have been a copy")
    return buffer


def allocate(queue: Queue, nbytes: int) -> Allocation:
    """New zero-filled pages of the system's. Raises OutOfDeviceMemoryError."""
    physical = queue.physical
    if nbytes > physical.info.memory_bytes:
        raise OutOfDeviceMemoryError(f"{nbytes} bytes: {physical.name} works with {physical.info.memory_bytes} at most")
    size = -(-nbytes // page_size()) * page_size()
    try:
        pages = Pages(size)
        pages.open(0, size)
        return Allocation(queue, pages.view(0, size))
    except (MemoryRefusedError, WrapRefusedError) as error:
        raise OutOfDeviceMemoryError(f"no room for {nbytes} bytes ({error})") from error


def wrap_pages(queue: Queue, pages: HostPages) -> Allocation:
    """Host pages, where they lie. Raises WrapRefusedError, which says why not."""
    alignment = queue.physical.info.page_alignment
    where = f"{pages.nbytes} bytes of host pages at {pages.address:#x}"
    if pages.nbytes <= 0 or pages.address % alignment or pages.nbytes % alignment:
        raise WrapRefusedError(f"{where}: address and length must be multiples of {alignment}")
    view = pages.view()
    if obstacle := find_obstacle(pages.address, pages.nbytes, write=view.flags.writeable):
        raise WrapRefusedError(f"{where}: {obstacle}")
    try:
        return Allocation(queue, view)
    except WrapRefusedError as error:
        if view.flags.writeable:
            raise
        raise WrapRefusedError(f"{error}; to have a model's file copied, set WASMETAL_COPY_WEIGHTS=1") from error


def _release(queue: Queue, buffers: list[Any], _pages: Bytes) -> None:
    # The pages are an argument so that they outlive the buffers.
    queue.residency.remove(buffers)
    buffers.clear()
