"""A physical device: what the driver says of it, and whether we can use it."""

from __future__ import annotations

import mmap
from typing import Any

from wasmetal.device.backend import Tier
from wasmetal.device.base import DeviceInfo
from wasmetal.device.vulkan import features
from wasmetal.device.vulkan.api import NULL, enumerate_all, ffi, lib, struct
from wasmetal.device.vulkan.instance import API_VERSION, Instance, version_text

HOST_MEMORY_EXTENSION = "VK_EXT_external_memory_host"

_TIERS = {
    lib.VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU: Tier.DISCRETE,
    lib.VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU: Tier.INTEGRATED,
    lib.VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU: Tier.INTEGRATED,
}


class PhysicalDevice:
    """One device that a driver shows.

    ``problem`` says in words why it cannot be used, or is None; only then are the other attributes to be relied on.
    """

    def __init__(self, instance: Instance, index: int, handle: Any) -> None:
        self.instance = instance
        self.index = index
        self.handle = handle
        core = ffi.new("VkPhysicalDeviceProperties *")
        lib.vkGetPhysicalDeviceProperties(handle, core)
        self.name: str = ffi.string(core.deviceName).decode()
        self.limits = core.limits
        self._core = core
        self.extensions = frozenset(
            ffi.string(e.extensionName).decode()
            for e in enumerate_all("vkEnumerateDeviceExtensionProperties", "VkExtensionProperties", handle, NULL)
        )
        self.queue_family, self.timestamp_bits = _compute_queue(handle)
        self.problem = self._find_problem()
        if self.problem is None:
            self._describe()

    def _find_problem(self) -> str | None:
        if self._core.apiVersion < API_VERSION:
            return f"its driver speaks Vulkan {version_text(self._core.apiVersion)}, and 1.2 is needed"
        if HOST_MEMORY_EXTENSION not in self.extensions:
            return f"its driver lacks {HOST_MEMORY_EXTENSION}, without which host pages cannot be shared"
        if self.queue_family is None:
            return "it has no compute queue with timestamps"
        return None

    def _describe(self) -> None:
        host = struct("VkPhysicalDeviceExternalMemoryHostPropertiesEXT")
        subgroup = struct("VkPhysicalDeviceSubgroupProperties", pNext=host)
        sizes = struct("VkPhysicalDeviceMaintenance3Properties", pNext=subgroup)
        driver = struct("VkPhysicalDeviceDriverProperties", pNext=sizes)
        chain = driver
        control = None
        if features.SUBGROUP_SIZE_EXTENSION in self.extensions:
            chain = control = struct("VkPhysicalDeviceSubgroupSizeControlProperties", pNext=chain)
        lib.vkGetPhysicalDeviceProperties2(self.handle, struct("VkPhysicalDeviceProperties2", pNext=chain))

        self.features = features.supported(self.handle, self.extensions)
        self.capabilities = features.capabilities(self.features, subgroup.supportedOperations)
        self.unified: bool = self._core.deviceType in (
            lib.VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU,
            lib.VK_PHYSICAL_DEVICE_TYPE_CPU,
        )
        self.tier = _TIERS.get(self._core.deviceType, Tier.SOFTWARE)
        self.page_alignment = max(int(host.minImportedHostPointerAlignment), mmap.PAGESIZE)
        self.max_allocation_bytes = int(sizes.maxMemoryAllocationSize)
        self.subgroup_size = int(subgroup.subgroupSize)
        self.several_subgroup_sizes = (
            control is not None
            and self.has("subgroupSizeControl")
            and bool(control.requiredSubgroupSizeStages & lib.VK_SHADER_STAGE_COMPUTE_BIT)
            and control.minSubgroupSize < control.maxSubgroupSize
        )
        self.max_subgroups = int(control.maxComputeWorkgroupSubgroups) if control is not None else 0
        memory = ffi.new("VkPhysicalDeviceMemoryProperties *")
        lib.vkGetPhysicalDeviceMemoryProperties(self.handle, memory)
        self.memory_types: list[int] = [t.propertyFlags for t in memory.memoryTypes[0 : memory.memoryTypeCount]]
        self.cache_key = (
            f"{self._core.vendorID:04x}-{self._core.deviceID:04x}-{self._core.driverVersion:x}-"
            f"{bytes(self._core.pipelineCacheUUID).hex()}"
        )
        self.info = DeviceInfo(
            name=self.name,
            backend="vulkan",
            index=self.index,
            driver=f"{ffi.string(driver.driverName).decode()} {ffi.string(driver.driverInfo).decode()}, "
            f"Vulkan {version_text(self._core.apiVersion)}",
            unified=self.unified,
            memory_bytes=sum(
                heap.size
                for heap in memory.memoryHeaps[0 : memory.memoryHeapCount]
                if heap.flags & lib.VK_MEMORY_HEAP_DEVICE_LOCAL_BIT
            ),
            page_alignment=self.page_alignment,
            offset_alignment=int(self.limits.minStorageBufferOffsetAlignment),
            max_binding_bytes=int(self.limits.maxStorageBufferRange),
            subgroup_size=self.subgroup_size,
            features=("host page import", "timestamps", *(f.words for f in self.features if f.words)),
        )

    def seconds(self, begin: int, end: int) -> float:
        """The time between two timestamps, whose counter may have wrapped round."""
        ticks = end - begin & (1 << self.timestamp_bits) - 1
        return ticks * float(self.limits.timestampPeriod) * 1e-9

    def has(self, field: str) -> bool:
        """Whether the device has a feature, by its field's name in Vulkan's structs."""
        return any(feature.field == field for feature in self.features)


def _compute_queue(handle: Any) -> tuple[int | None, int]:
    """(index, timestamp bits) of the first queue family with compute and timestamps."""
    families = enumerate_all("vkGetPhysicalDeviceQueueFamilyProperties", "VkQueueFamilyProperties", handle)
    for index, family in enumerate(families):
        if family.queueFlags & lib.VK_QUEUE_COMPUTE_BIT and family.timestampValidBits:
            return index, family.timestampValidBits
    return None, 0


def physical_devices() -> list[PhysicalDevice]:
    """Every device that the installed drivers show, usable or not, in the loader's order.

    Raises DeviceNotFoundError if there is no loader or no driver.
    """
    instance = Instance()
    return [PhysicalDevice(instance, i, handle) for i, handle in enumerate(instance.physical_devices())]
