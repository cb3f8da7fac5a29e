"""Device memory: a ``VkBuffer`` bound to memory that the driver allocates, or to imported host pages.

Each buffer has a separate ``VkDeviceMemory``. Drivers allow a few thousand of these, and callers use few, large buffers
(a handful for a model's weights), so there is no sub-allocator.
"""

from __future__ import annotations

from collections.abc import Sequence

from wasmetal.device.base import Bytes, HostPages
from wasmetal.device.vulkan.api import NULL, call, ffi, lib, make, struct
from wasmetal.device.vulkan.logical import LogicalDevice, Owned
from wasmetal.errors import DeviceError, OutOfDeviceMemoryError, WrapRefusedError
from wasmetal.memory.pages import array_over

_DEVICE_LOCAL: int = lib.VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT
_MAPPABLE: int = lib.VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | lib.VK_MEMORY_PROPERTY_HOST_COHERENT_BIT
_CACHED: int = lib.VK_MEMORY_PROPERTY_HOST_CACHED_BIT
_HOST_ALLOCATION: int = lib.VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT
_USAGE: int = (
    lib.VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | lib.VK_BUFFER_USAGE_TRANSFER_SRC_BIT | lib.VK_BUFFER_USAGE_TRANSFER_DST_BIT
)

_GRANULE = 16
"""Buffer sizes are multiples of this: fills write 4-byte words, and kernels load up to 16 bytes at a time."""

Properties = tuple[int, int, int]
"""Property flags that a memory type must have, should have and should not have."""

UNIFIED: Properties = (_MAPPABLE, _DEVICE_LOCAL | _CACHED, 0)
SHARED: Properties = (_MAPPABLE, _CACHED, _DEVICE_LOCAL)
DEVICE: Properties = (_DEVICE_LOCAL, 0, _MAPPABLE)


class VulkanAllocation:
    """A Vulkan buffer and its memory, freed once nothing refers to them.

    Recorded commands and NumPy views refer to the allocation, so it can outlive its ``Buffer``.
    """

    def __init__(self, device: LogicalDevice, nbytes: int, wanted: Properties, pages: HostPages | None = None) -> None:
        """Import ``pages`` without copying, or allocate memory, whose content is undefined.

        Raises OutOfDeviceMemoryError, DeviceError if the device has no suitable memory type, and WrapRefusedError if
        the pages cannot be imported.
        """
        physical, handle = device.physical, device.handle
        needed, preferred, avoided = wanted
        if nbytes > physical.max_allocation_bytes:
            limit = physical.max_allocation_bytes
            raise OutOfDeviceMemoryError(f"{nbytes} bytes: {physical.name} allocates at most {limit} at once")
        self.nbytes = nbytes
        self.size = -(-nbytes // _GRANULE) * _GRANULE
        """``nbytes``, rounded up to a multiple of ``_GRANULE``."""
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
            raise WrapRefusedError("the driver has no memory type for these host pages")
        if chosen is None:
            raise DeviceError(f"{physical.name} has no memory type for a storage buffer; choose another device")
        info = struct("VkMemoryAllocateInfo", pNext=chain, allocationSize=needs.size, memoryTypeIndex=chosen)
        memory = make("vkAllocateMemory", "VkDeviceMemory", handle, info, NULL)
        self._memory = Owned(device, memory, "vkFreeMemory", self._pages)
        call("vkBindBufferMemory", handle, self.buffer.handle, memory, 0)
        self.device_address: int | None = None
        if addressed:
            of_buffer = struct("VkBufferDeviceAddressInfo", buffer=self.buffer.handle)
            self.device_address = int(lib.vkGetBufferDeviceAddress(handle, of_buffer))
        self.address: int | None = None if pages is None else pages.address
        if pages is None and needed & _MAPPABLE:
            mapped = make("vkMapMemory", "void *", handle, memory, 0, self.size, 0)
            self.address = int(ffi.cast("uintptr_t", mapped))

    def view(self) -> Bytes:
        """The bytes, uint8 of shape [nbytes]. Called only if the host can see them."""
        if self._pages is not None:
            return self._pages
        assert self.address is not None
        return array_over(self.address, self.nbytes, self)


def choose_type(types: Sequence[int], allowed: int, needed: int, preferred: int, avoided: int) -> int | None:
    """The index of the best memory type in the bit mask ``allowed``; None if none has every ``needed`` flag.

    ``types`` are property flags. Most ``preferred`` flags win, then fewest ``avoided`` flags, then the driver's order.
    """
    fitting = [i for i, flags in enumerate(types) if allowed >> i & 1 and flags & needed == needed]
    score = {i: ((types[i] & preferred).bit_count(), -(types[i] & avoided).bit_count()) for i in fitting}
    return max(fitting, key=score.__getitem__, default=None)
