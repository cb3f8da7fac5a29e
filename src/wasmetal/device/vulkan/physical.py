"""Physical devices: their properties, and why a device cannot be used."""

from __future__ import annotations

import mmap
from typing import Any

from wasmetal.device.backend import LEAST_SPEEDS, Tier
from wasmetal.device.base import DeviceInfo
from wasmetal.device.matrix_units import SUBGROUP
from wasmetal.device.vulkan import features
from wasmetal.device.vulkan.api import NULL, enumerate_all, ffi, lib, make, struct
from wasmetal.device.vulkan.instance import API_VERSION, Instance, version_text

EXTENSIONS = {
    "VK_EXT_external_memory_host": "host pages cannot be shared",
    "VK_KHR_push_descriptor": "kernels cannot be given their buffers",
}
"""The extensions that a device must have, and the consequence of lacking each."""

_TIERS = {
    lib.VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU: Tier.DISCRETE,
    lib.VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU: Tier.INTEGRATED,
    lib.VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU: Tier.INTEGRATED,
}
_COMPUTE_STAGE: int = lib.VK_SHADER_STAGE_COMPUTE_BIT
_UNIFIED = (lib.VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU, lib.VK_PHYSICAL_DEVICE_TYPE_CPU)


class PhysicalDevice:
    """A device that a driver enumerates, usable or not.

    ``problem`` is the reason why it cannot be used, or None. ``tier``, ``info`` and so on are set only if it is None.
    """

    def __init__(self, instance: Instance, index: int, handle: Any) -> None:
        self.instance = instance
        self.handle = handle
        core = make("vkGetPhysicalDeviceProperties", "VkPhysicalDeviceProperties", handle)
        self.name = _text(core.deviceName)
        found = enumerate_all("vkEnumerateDeviceExtensionProperties", "VkExtensionProperties", handle, NULL)
        self.extensions = frozenset(_text(extension.extensionName) for extension in found)
        self.queue_family, self._timestamp_bits = _compute_queue(handle)
        self.problem = self._find_problem(core.apiVersion)
        if self.problem is None:
            self._describe(core, index)

    def _find_problem(self, version: int) -> str | None:
        if version < API_VERSION:
            return f"its driver supports Vulkan {version_text(version)}; 1.2 or later is needed"
        for name, lack in EXTENSIONS.items():
            if name not in self.extensions:
                return f"its driver lacks {name}: {lack}"
        if self.queue_family is None:
            return "it has no compute queue with timestamps"
        return None

    def _describe(self, core: Any, index: int) -> None:
        host = struct("VkPhysicalDeviceExternalMemoryHostPropertiesEXT")
        subgroup = struct("VkPhysicalDeviceSubgroupProperties", pNext=host)
        sizes = struct("VkPhysicalDeviceMaintenance3Properties", pNext=subgroup)
        driver = chain = struct("VkPhysicalDeviceDriverProperties", pNext=sizes)
        control = struct("VkPhysicalDeviceSubgroupSizeControlProperties", pNext=chain)  # zero if unsupported
        if features.EXTENSIONS[features.SUBGROUP_SIZE] in self.extensions:
            chain = control
        lib.vkGetPhysicalDeviceProperties2(self.handle, struct("VkPhysicalDeviceProperties2", pNext=chain))
        memory = make("vkGetPhysicalDeviceMemoryProperties", "VkPhysicalDeviceMemoryProperties", self.handle)
        heaps = memory.memoryHeaps[0 : memory.memoryHeapCount]

        self.tier = _TIERS.get(core.deviceType, Tier.SOFTWARE)
        self.unified = core.deviceType in _UNIFIED
        self.features, self.enabling = features.query(self.handle, self.extensions)
        self.capabilities = features.capabilities(self.features, subgroup.supportedOperations)
        self.grid_limits = tuple(core.limits.maxComputeWorkGroupCount)
        self.max_allocation_bytes = int(sizes.maxMemoryAllocationSize)
        self.memory_types = [kind.propertyFlags for kind in memory.memoryTypes[0 : memory.memoryTypeCount]]
        offers_matrices = self.has("cooperativeMatrix") and subgroup.subgroupSize == SUBGROUP
        self.matrices = offers_matrices and features.multiplies_matrices(self.instance.handle, self.handle)
        """Whether the kernels with cooperative matrices can be tried."""
        can_require = self.has("subgroupSizeControl") and control.requiredSubgroupSizeStages & _COMPUTE_STAGE
        self.several_subgroup_sizes = bool(can_require) and control.minSubgroupSize < control.maxSubgroupSize
        self.max_subgroups = int(control.maxComputeWorkgroupSubgroups)
        cache_id = bytes(core.pipelineCacheUUID).hex()
        self.cache_key = f"{core.vendorID:04x}-{core.deviceID:04x}-{core.driverVersion:x}-{cache_id}"
        self._seconds_per_tick = float(core.limits.timestampPeriod) * 1e-9
        version = version_text(core.apiVersion)
        self.info = DeviceInfo(
            name=self.name,
            backend="vulkan",
            index=index,
            driver=f"{_text(driver.driverName)} {_text(driver.driverInfo)}, Vulkan {version}",
            unified=self.unified,
            memory_bytes=sum(heap.size for heap in heaps if heap.flags & lib.VK_MEMORY_HEAP_DEVICE_LOCAL_BIT),
            page_alignment=max(int(host.minImportedHostPointerAlignment), mmap.PAGESIZE),
            offset_alignment=int(core.limits.minStorageBufferOffsetAlignment),
            max_binding_bytes=int(core.limits.maxStorageBufferRange),
            subgroup_size=int(subgroup.subgroupSize),
            operations_per_second=LEAST_SPEEDS[self.tier],
            gpu=self.tier is not Tier.SOFTWARE,
            fuses=True,
            shuffles=features.SHUFFLES in self.capabilities and subgroup.subgroupSize >= SUBGROUP,
            joins=True,
            features=("host page import", "timestamps", *(f.words for f in self.features if f.words)),
        )

    def seconds(self, begin: int, end: int) -> float:
        """Seconds between two timestamps, in ticks of a counter that may have wrapped around."""
        return (end - begin & (1 << self._timestamp_bits) - 1) * self._seconds_per_tick

    def has(self, field: str) -> bool:
        """Whether the device supports one of FEATURES, by its field in Vulkan's structs."""
        return any(feature.field == field for feature in self.features)


def _text(chars: Any) -> str:
    return str(ffi.string(chars).decode())


def _compute_queue(handle: Any) -> tuple[int | None, int]:
    """The first queue family with compute and timestamps: its index (None if there is none) and timestamp bits."""
    families = enumerate_all("vkGetPhysicalDeviceQueueFamilyProperties", "VkQueueFamilyProperties", handle)
    for index, family in enumerate(families):
        if family.queueFlags & lib.VK_QUEUE_COMPUTE_BIT and family.timestampValidBits:
            return index, family.timestampValidBits
    return None, 0


def physical_devices() -> list[PhysicalDevice]:
    """Every device that the installed drivers enumerate, usable or not, in the loader's order.

    Raises DeviceNotFoundError if there is no loader or no driver.
    """
    instance = Instance()
    handles = enumerate_all("vkEnumeratePhysicalDevices", "VkPhysicalDevice", instance.handle)
    return [PhysicalDevice(instance, i, handle) for i, handle in enumerate(handles)]
