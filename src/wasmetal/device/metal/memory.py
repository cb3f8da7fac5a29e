"""Pages wrapped in place as Metal buffers: a guest's, a mapped file's, or pages that the device allocates."""

from __future__ import annotations

from typing import Any

import numpy as np

from wasmetal.device.base import Bytes
from wasmetal.device.hostpages import new_pages
from wasmetal.device.metal.api import mtl, objc
from wasmetal.device.metal.residency import Residency
from wasmetal.device.parts import Parts
from wasmetal.device.release import on_release
from wasmetal.errors import OutOfDeviceMemoryError, WrapRefusedError
from wasmetal.memory.pages import page_size

_OPTIONS: int = (
    # Untracked: buffers may overlap, which Metal's hazard tracking does not see. Barriers and events order the work.
    mtl.MTLResourceStorageModeShared | mtl.MTLResourceHazardTrackingModeUntracked
)


class MetalAllocation:
    """Whole pages as Metal buffers. Without references to it, the buffers are released, then the pages."""

    def __init__(self, residency: Residency, pages: Bytes) -> None:
        """Wrap ``pages``: uint8, a whole number of pages. Raises WrapRefusedError if Metal refuses."""
        physical = residency.physical

        def wrap(start: int, stop: int) -> Any:
            with objc.autorelease_pool():
                buffer = _wrap(physical.handle, pages[start:stop])
            residency.add(buffer)
            return buffer

        self._pages = pages
        self._parts = Parts(pages.size, physical.part_bytes, page_size(), wrap)
        on_release(self, _release, residency, self._parts.buffers, pages)
        self._parts.fill()
        self.address = pages.ctypes.data
        self.device_address: int | None = int(self._parts.buffers[0].gpuAddress()) or None

    def bind(self, offset: int, nbytes: int) -> tuple[Any, int]:
        """The ``MTLBuffer`` that holds ``nbytes`` bytes at ``offset``, and their offset in it.

        Raises WrapRefusedError if that needs another buffer, and Metal refuses to make it.
        """
        return self._parts.bind(offset, nbytes)

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


def allocate(residency: Residency, nbytes: int) -> MetalAllocation:
    """New zero-filled pages. Raises OutOfDeviceMemoryError."""
    physical = residency.physical
    if nbytes > physical.info.memory_bytes:
        raise OutOfDeviceMemoryError(f"{nbytes} bytes: {physical.name} works with at most {physical.info.memory_bytes}")
    try:
        return MetalAllocation(residency, new_pages(nbytes))
    except WrapRefusedError as error:
        raise OutOfDeviceMemoryError(f"no room for {nbytes} bytes ({error})") from error


def _release(residency: Residency, buffers: list[Any], _pages: Bytes) -> None:
    # The finalizer holds the pages so that they outlive the buffers.
    residency.remove(buffers)
    buffers.clear()
