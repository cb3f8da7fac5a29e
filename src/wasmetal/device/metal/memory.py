"""Pages wrapped in place as Metal buffers: a guest's, a mapped file's, or pages that the device allocates."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from wasmetal.device.base import Bytes
from wasmetal.device.metal.api import mtl, objc
from wasmetal.device.metal.queue import CommandQueue
from wasmetal.device.parts import Parts
from wasmetal.device.release import on_release
from wasmetal.errors import MemoryRefusedError, OutOfDeviceMemoryError, WrapRefusedError
from wasmetal.memory.pages import Pages, page_size

_OPTIONS: int = (
    # Untracked: buffers may overlap, which Metal's hazard tracking does not see. Barriers and events order the work.
    mtl.MTLResourceStorageModeShared | mtl.MTLResourceHazardTrackingModeUntracked
)


class MetalAllocation:
    """Whole pages as Metal buffers. Without references to it, the buffers are released, then the pages."""

    def __init__(self, queue: CommandQueue, pages: Bytes) -> None:
        """Wrap ``pages``: uint8, a whole number of pages. Raises WrapRefusedError if Metal refuses."""
        physical = queue.physical
        self.address = pages.ctypes.data
        self._pages = pages
        self._queue = queue
        self._lock = threading.Lock()
        self._parts = Parts(pages.size, physical.part_bytes)
        self._bridges: dict[tuple[int, int], Any] = {}
        with objc.autorelease_pool():
            self._buffers = [_wrap(physical.handle, pages[start:stop]) for start, stop in self._parts.ranges()]
            self.device_address: int | None = int(self._buffers[0].gpuAddress()) or None
        queue.residency.add(self._buffers)
        on_release(self, _release, queue, self._buffers, pages)

    def bind(self, offset: int, nbytes: int) -> tuple[Any, int]:
        """The ``MTLBuffer`` that holds ``nbytes`` bytes at ``offset``, and their offset in it.

        Bytes that no single part holds get another buffer over the same pages. Raises WrapRefusedError if Metal
        refuses to make it.
        """
        part = self._parts.holding(offset, nbytes)
        if part is not None:
            start, _ = self._parts.ranges()[part]
            return self._buffers[part], offset - start
        page = page_size()
        start, stop = offset // page * page, -(-(offset + nbytes) // page) * page
        with self._lock:
            bridge = self._bridges.get((start, stop))
            if bridge is None:
                with objc.autorelease_pool():
                    bridge = _wrap(self._queue.physical.handle, self._pages[start:stop])
                self._queue.residency.add([bridge])
                self._bridges[start, stop] = bridge
                self._buffers.append(bridge)
        return bridge, offset - start

    def view(self) -> Bytes:
        """The bytes, uint8 of shape [nbytes]."""
        return self._pages


def _wrap(device: Any, pages: Bytes) -> Any:
    """An ``MTLBuffer`` whose contents are verified to be at the address of ``pages``. Raises WrapRefusedError."""
    buffer = device.newBufferWithBytesNoCopy_length_options_deallocator_(pages, pages.size, _OPTIONS, None)
    if buffer is None:
        raise WrapRefusedError("Metal made no buffer of the pages")
    if buffer.length() != pages.size:
        raise WrapRefusedError(f"Metal's buffer has {buffer.length()} bytes; this macOS cannot share pages")
    contents = buffer.contents()
    seen = np.frombuffer(contents.as_buffer(pages.size), np.uint8).ctypes.data if contents is not None else 0
    if seen != pages.ctypes.data:
        raise WrapRefusedError(f"Metal's buffer is at {seen:#x}, so it would be a copy")
    return buffer


def allocate(queue: CommandQueue, nbytes: int) -> MetalAllocation:
    """New zero-filled pages. Raises OutOfDeviceMemoryError."""
    physical = queue.physical
    if nbytes > physical.info.memory_bytes:
        raise OutOfDeviceMemoryError(f"{nbytes} bytes: {physical.name} works with at most {physical.info.memory_bytes}")
    size = -(-nbytes // page_size()) * page_size()
    try:
        pages = Pages(size)
        pages.open(0, size)
        return MetalAllocation(queue, pages.view(0, size))
    except (MemoryRefusedError, WrapRefusedError) as error:
        raise OutOfDeviceMemoryError(f"no room for {nbytes} bytes ({error})") from error


def _release(queue: CommandQueue, buffers: list[Any], _pages: Bytes) -> None:
    # The finalizer holds the pages so that they outlive the buffers.
    queue.residency.remove(buffers)
    buffers.clear()
