"""Memory of the GPU, and host pages that it uses at the host's own addresses."""

from __future__ import annotations

from wasmetal.device.base import Bytes, HostPages
from wasmetal.device.cuda.api import call
from wasmetal.device.cuda.context import Context, Owned
from wasmetal.device.cuda.registered import registry
from wasmetal.device.hostpages import new_pages


class CudaAllocation:
    """Bytes that the GPU can use. Without references to it they are freed."""

    def __init__(self, device_address: int, pages: Bytes | None = None) -> None:
        self.device_address: int | None = device_address
        self.address = None if pages is None else device_address
        self._pages = pages

    def view(self) -> Bytes:
        """The bytes, uint8 of shape [nbytes]. Called only if the host can see them."""
        assert self._pages is not None
        return self._pages


def allocate_device(context: Context, stream: Owned, nbytes: int) -> CudaAllocation:
    """Zero-filled memory of the GPU. Freeing it waits for nothing: it takes effect after all work started before.

    Raises OutOfDeviceMemoryError.
    """
    context.use()
    place = call("cuMemAllocAsync", nbytes, stream.handle)
    made = CudaAllocation(int(place))
    context.release_with(made, "cuMemFreeAsync", place, stream.handle, keeps=stream)
    call("cuMemsetD8Async", place, 0, nbytes, stream.handle)
    return made


def allocate_shared(context: Context, nbytes: int) -> CudaAllocation:
    """New zero-filled host pages. Raises OutOfDeviceMemoryError."""
    return _registered(context, new_pages(nbytes))


def wrap(context: Context, pages: HostPages) -> CudaAllocation:
    """Host pages, not copied. Raises WrapRefusedError."""
    return _registered(context, pages.view())


def _registered(context: Context, pages: Bytes) -> CudaAllocation:
    made = CudaAllocation(pages.ctypes.data, pages)
    registry.register(made, context, pages)
    return made
