"""Device memory: a ``VkBuffer`` bound to memory of the driver's, or to imported host pages.

Each buffer has one ``VkDeviceMemory`` of its own. Drivers allow a few thousand of them, and callers use few, large
buffers (a model's weights are a handful), so there is no sub-allocator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wasmetal.device.base import Bytes, HostPages
from wasmetal.device.vulkan.api import NULL, call, ffi, lib, make, struct
from wasmetal.device.vulkan.logical import LogicalDevice, Owned
from wasmetal.errors import DeviceError, OutOfDeviceMemoryError, WrapRefusedError

_DEVICE_LOCAL: int = lib.VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT
_MAPPABLE: int = lib.VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | lib.VK_MEMORY_PROPERTY_HOST_COHERENT_BIT
_CACHED: int = lib.VK_MEMORY_PROPERTY_HOST_CACHED_BIT
_HOST_ALLOCATION: int = lib.VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT
_USAGE: int = (
    lib.VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | lib.VK_BUFFER_USAGE_TRANSFER_SRC_BIT | lib.VK_BUFFER_USAGE_TRANSFER_DST_BIT
)

_GRANULE = 16
"""Buffers are sized in multiples of this, so that they can be filled by words and loaded 16 bytes at a time."""

Properties = tuple[int, int, int]
"""Properties that memory must have, should have and should not have."""

UNIFIED: Properties = (_MAPPABLE, _DEVICE_LOCAL | _CACHED, 0)
SHARED: Properties = (_MAPPABLE, _CACHED, _DEVICE_LOCAL)
DEVICE: Properties = (_DEVICE_LOCAL, 0, _MAPPABLE)


class VulkanAllocation:
    """A Vulkan buffer and its memory, freed when nothing refers to it any more.

    Recorded commands and NumPy views refer to it, so it outlives the ``Buffer`` that was closed before them.
    """

    def __init__(
        self, device: LogicalDevice, nbytes: int, properties: Properties, pages: HostPages | None = None
    ) -> None:
        """Memory of the driver's, whose content is undefined, or ``pages``, imported: the same bytes, not copied.

        Raises OutOfDeviceMemoryError, DeviceError if the device has no such memory, and WrapRefusedError.
        """
        physical, handle = device.physical, device.handle
        needed, preferred, avoided = properties
        if nbytes > physical.max_allocation_bytes:
            limit = physical.max_allocation_bytes
            raise OutOfDeviceMemoryError(f"{physical.name} takes at most {limit} bytes in one range, not {nbytes}")
        self.nbytes = nbytes
        self.size = -(-nbytes // _GRANULE) * _GRANULE
        """``nbytes``, rounded up."""
        self._pages: Bytes | None = None
        external = chain = NULL
        if pages is not None:
            self._pages = pages.view()
            pointer = ffi.cast("void *", pages.address)
            external = struct("VkExternalMemoryBufferCreateInfo", handleTypes=_HOST_ALLOCATION)
            chain = struct("VkImportMemoryHostPointerInfoEXT", handleType=_HOST_ALLOCATION, pHostPointer=pointer)
        usage, addressed = _USAGE, physical.has("bufferDeviceAddress")
        if addressed:
            usage |= lib.VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT
            flags = lib.VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT
            chain = struct("VkMemoryAllocateFlagsInfo", pNext=chain, flags=flags)
        info = struct("VkBufferCreateInfo", pNext=external, size=self.size, usage=usage)
        self.buffer = device.create("Buffer", info)
        needs = make("vkGetBufferMemoryRequirements", "VkMemoryRequirements", handle, self.buffer.handle)
        importable = ~0 if pages is None else device.importable_types(pages.address)
        chosen = choose_type(physical.memory_types, needs.memoryTypeBits & importable, needed, preferred, avoided)
        if pages is not None and (chosen is None or needs.size > nbytes):
            raise WrapRefusedError("the driver has no memory type for them")
        if chosen is None:
            raise DeviceError(f"{physical.name} has no memory type that a buffer can use; choose another device")
        info = struct("VkMemoryAllocateInfo", pNext=chain, allocationSize=needs.size, memoryTypeIndex=chosen)
        memory = make("vkAllocateMemory", "VkDeviceMemory", handle, info, NULL)
        self._memory = Owned(device, memory, "vkFreeMemory", self._pages)
        call("vkBindBufferMemory", handle, self.buffer.handle, memory, 0)
        self.device_address: int | None = None
        """Where the device sees the bytes; None if it does not tell."""
        if addressed:
            of_buffer = struct("VkBufferDeviceAddressInfo", buffer=self.buffer.handle)
            self.device_address = int(lib.vkGetBufferDeviceAddress(handle, of_buffer))
        self.address: int | None = None
        """Where the host sees the bytes; None if it does not."""
        if pages is not None:
            self.address = pages.address
        elif needed & _MAPPABLE:
            mapped = make("vkMapMemory", "void *", handle, memory, 0, self.size, 0)
            self.address = int(ffi.cast("uintptr_t", mapped))

    def view(self) -> Bytes:
        """The bytes, uint8 of shape [nbytes]; only if the host sees them."""
        return np.asarray(self) if self._pages is None else self._pages

    @property
    def __array_interface__(self) -> dict[str, Any]:
        # NumPy's protocol for arrays over foreign memory: the array refers to this object, and so keeps it alive.
        return {"version": 3, "shape": (self.nbytes,), "typestr": "|u1", "data": (self.address, False)}


def choose_type(types: Sequence[int], allowed: int, needed: int, preferred: int, avoided: int) -> int | None:
    """The best memory type, by property flags, among the bits of ``allowed``; None if none has all ``needed``.

    Having ``preferred`` properties counts for more than lacking ``avoided`` ones; between equals the driver's own
    order, best first, decides.
    """
    fitting = [i for i, flags in enumerate(types) if allowed >> i & 1 and flags & needed == needed]
    return max(
        fitting, key=lambda i: ((types[i] & preferred).bit_count(), -(types[i] & avoided).bit_count()), default=None
    )
