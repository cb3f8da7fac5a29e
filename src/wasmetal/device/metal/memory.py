"""Pages as Metal buffers: wrapped in place, whether a guest's, a file's or the device's own."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from wasmetal.device.base import Bytes, HostPages
from wasmetal.device.metal.api import mtl
from wasmetal.device.metal.queue import CommandQueue
from wasmetal.device.parts import Parts
from wasmetal.errors import MemoryRefusedError, OutOfDeviceMemoryError, WrapRefusedError
from wasmetal.memory.pages import Pages, page_size

_OPTIONS: int = (
    # Untracked: barriers and the queue's event order the work, by address, which Metal's own tracking cannot.
    mtl.MTLResourceStorageModeShared | mtl.MTLResourceHazardTrackingModeUntracked
)


class MetalAllocation:
    """Whole pages as Metal buffers; both are freed, the buffers first, when nothing refers to it any more."""

    def __init__(self, queue: CommandQueue, pages: Bytes) -> None:
        """Wrap ``pages``, uint8 of a whole number of pages. Raises WrapRefusedError if Metal will not."""
        physical = queue.physical
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
    if buffer is None:
        raise WrapRefusedError("Metal made no buffer of them")
    if buffer.length() != pages.size:
        raise WrapRefusedError(f"Metal's buffer has {buffer.length()} bytes; this macOS cannot share pages")
    contents = buffer.contents()
    seen = np.frombuffer(contents.as_buffer(pages.size), np.uint8).ctypes.data if contents is not None else 0
    if seen != pages.ctypes.data:
        raise WrapRefusedError(f"Metal's buffer is at {seen:#x}, so it would have been a copy")
    return buffer


def allocate(queue: CommandQueue, nbytes: int) -> MetalAllocation:
    """New zero-filled pages of the system's. Raises OutOfDeviceMemoryError."""
    physical = queue.physical
    if nbytes > physical.info.memory_bytes:
        raise OutOfDeviceMemoryError(f"{nbytes} bytes: {physical.name} works with {physical.info.memory_bytes} at most")
    size = -(-nbytes // page_size()) * page_size()
    try:
        pages = Pages(size)
        pages.open(0, size)
        return MetalAllocation(queue, pages.view(0, size))
    except (MemoryRefusedError, WrapRefusedError) as error:
        raise OutOfDeviceMemoryError(f"no room for {nbytes} bytes ({error})") from error


def wrap_pages(queue: CommandQueue, pages: HostPages) -> MetalAllocation:
    """Host pages, in place. Raises WrapRefusedError, which says why."""
    return MetalAllocation(queue, pages.view())


def _release(queue: CommandQueue, buffers: list[Any], _pages: Bytes) -> None:
    # The pages are an argument so that they outlive the buffers.
    queue.residency.remove(buffers)
    buffers.clear()
