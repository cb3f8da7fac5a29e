"""Device memory: a ``VkBuffer`` bound to memory of the driver's, or to imported host pages.

Each buffer has one ``VkDeviceMemory`` of its own. Drivers allow a few thousand of them, and callers use few, large
buffers (a model's weights are a handful), so there is no sub-allocator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wasmetal.device.base import Bytes, HostPages, MemoryKind
from wasmetal.device.vulkan.api import NULL, call, create, ffi, lib, on_release, struct
from wasmetal.device.vulkan.logical import LogicalDevice
from wasmetal.errors import DeviceError, OutOfDeviceMemoryError, WrapRefusedError

_DEVICE_LOCAL: int = lib.VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT
_MAPPABLE: int = lib.VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | lib.VK_MEMORY_PROPERTY_HOST_COHERENT_BIT
_CACHED: int = lib.VK_MEMORY_PROPERTY_HOST_CACHED_BIT
_HOST_ALLOCATION: int = lib.VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT

_GRANULE = 16
"""Buffers are sized in multiples of this, so that they can be filled by words and loaded 16 bytes at a time."""


class VulkanAllocation:
    """A Vulkan buffer and its memory, freed when nothing refers to it any more.

    Recorded commands and NumPy views refer to it, so it outlives the ``Buffer`` that was closed before them.
    """

    def __init__(self, device: LogicalDevice, nbytes: int, external: Any = NULL) -> None:
        self.device = device
        self.nbytes = nbytes
        self.address: int | None = None
        """Where the host sees the bytes; None if it does not."""
        self.device_address: int | None = None
        """Where the device sees them; None if it does not tell."""
        usage = (
            lib.VK_BUFFER_USAGE_STORAGE_BUFFER_BIT
            | lib.VK_BUFFER_USAGE_TRANSFER_SRC_BIT
            | lib.VK_BUFFER_USAGE_TRANSFER_DST_BIT
        )
        if device.physical.has("bufferDeviceAddress"):
            usage |= lib.VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT
        self.size = -(-nbytes // _GRANULE) * _GRANULE
        """``nbytes``, rounded up."""
        info = struct("VkBufferCreateInfo", pNext=external, size=self.size, usage=usage)
        self.buffer = create("Buffer", device.handle, info)
        self._memory = ffi.new("VkDeviceMemory *")
        self._pages: list[Bytes] = []  # imported host pages, as an array that keeps them alive
        on_release(self, _destroy, device, self.buffer, self._memory, self._pages)
        self.requirements = ffi.new("VkMemoryRequirements *")
        lib.vkGetBufferMemoryRequirements(device.handle, self.buffer, self.requirements)

    def bind(self, size: int, memory_type: int, chain: Any = NULL) -> None:
        """Give the buffer its memory; ``chain`` extends the ``VkMemoryAllocateInfo``."""
        device = self.device
        if device.physical.has("bufferDeviceAddress"):
            chain = struct("VkMemoryAllocateFlagsInfo", pNext=chain, flags=lib.VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT)
        info = struct("VkMemoryAllocateInfo", pNext=chain, allocationSize=size, memoryTypeIndex=memory_type)
        call("vkAllocateMemory", device.handle, info, NULL, self._memory)
        call("vkBindBufferMemory", device.handle, self.buffer, self._memory[0], 0)
        if device.physical.has("bufferDeviceAddress"):
            of_buffer = struct("VkBufferDeviceAddressInfo", buffer=self.buffer)
            self.device_address = int(lib.vkGetBufferDeviceAddress(device.handle, of_buffer))

    def map(self) -> None:
        """Make the driver's memory visible to the host, for as long as it lives."""
        held = ffi.new("void **")
        call("vkMapMemory", self.device.handle, self._memory[0], 0, self.size, 0, held)
        self.address = int(ffi.cast("uintptr_t", held[0]))

    def bind_pages(self, pages: Bytes, memory_type: int) -> None:
        """Give the buffer host pages for its memory."""
        self._pages.append(pages)
        self.address = pages.ctypes.data
        pointer = ffi.cast("void *", self.address)
        host = struct("VkImportMemoryHostPointerInfoEXT", handleType=_HOST_ALLOCATION, pHostPointer=pointer)
        self.bind(self.nbytes, memory_type, host)

    def view(self) -> Bytes:
        """The bytes, uint8 of shape [nbytes]; only if the host sees them."""
        return self._pages[0] if self._pages else np.asarray(self)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        # NumPy's protocol for arrays over foreign memory: the array refers to this object, and so keeps it alive.
        return {"version": 3, "shape": (self.nbytes,), "typestr": "|u1", "data": (self.address, False)}


def allocate(device: LogicalDevice, nbytes: int, kind: MemoryKind) -> VulkanAllocation:
    """Memory of the driver's, mapped if the host may see it; its content is undefined.

    Device memory is mapped on unified devices only: on a discrete GPU a host read through the bus runs at megabytes per
    second, so there it is reached through the staging buffer alone. Raises OutOfDeviceMemoryError.
    """
    physical = device.physical
    if nbytes > physical.max_allocation_bytes:
        raise OutOfDeviceMemoryError(
            f"{nbytes} bytes in one buffer: {physical.name} allows {physical.max_allocation_bytes}"
        )
    mapped = physical.unified or kind is MemoryKind.SHARED
    if physical.unified:
        needed, preferred, avoided = _MAPPABLE, _DEVICE_LOCAL | _CACHED, 0
    elif mapped:
        needed, preferred, avoided = _MAPPABLE, _CACHED, _DEVICE_LOCAL
    else:
        needed, preferred, avoided = _DEVICE_LOCAL, 0, _MAPPABLE
    allocation = VulkanAllocation(device, nbytes)
    allowed = allocation.requirements.memoryTypeBits
    chosen = choose_type(physical.memory_types, allowed, needed, preferred, avoided)
    if chosen is None:
        raise DeviceError(f"{physical.name} has no {kind.value} memory that a buffer can use")
    allocation.bind(allocation.requirements.size, chosen)
    if mapped:
        allocation.map()
    return allocation


def import_pages(device: LogicalDevice, pages: HostPages) -> VulkanAllocation:
    """Host pages as device memory: the same bytes, not copied. Raises WrapRefusedError, which says why."""
    physical, nbytes = device.physical, pages.nbytes
    if nbytes > physical.max_allocation_bytes:
        raise WrapRefusedError(f"it takes at most {physical.max_allocation_bytes} bytes in one range")
    external = struct("VkExternalMemoryBufferCreateInfo", handleTypes=_HOST_ALLOCATION)
    allocation = VulkanAllocation(device, nbytes, external)
    allowed = allocation.requirements.memoryTypeBits & device.importable_types(pages.address)
    chosen = choose_type(physical.memory_types, allowed, _MAPPABLE, _CACHED, _DEVICE_LOCAL)
    if chosen is None or allocation.requirements.size > nbytes:
        raise WrapRefusedError("the driver has no memory type for them")
    allocation.bind_pages(pages.view(), chosen)
    return allocation


def choose_type(types: Sequence[int], allowed: int, needed: int, preferred: int, avoided: int) -> int | None:
    """The best memory type, by property flags, among the bits of ``allowed``; None if none has all ``needed``.

    Having ``preferred`` properties counts for more than lacking ``avoided`` ones; between equals the driver's own
    order, best first, decides.
    """
    fitting = [i for i, flags in enumerate(types) if allowed >> i & 1 and flags & needed == needed]
    return max(
        fitting, key=lambda i: ((types[i] & preferred).bit_count(), -(types[i] & avoided).bit_count()), default=None
    )


def _destroy(device: LogicalDevice, buffer: Any, memory: Any, pages: list[Bytes]) -> None:
    lib.vkDestroyBuffer(device.handle, buffer, NULL)
    lib.vkFreeMemory(device.handle, memory[0], NULL)
    pages.clear()
