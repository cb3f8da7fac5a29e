"""The optional features that are enabled on a device, and the SPIR-V capabilities that depend on them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from wasmetal.device.vulkan.api import NULL, check, ffi, lib, struct

CORE = "VkPhysicalDeviceFeatures2"
VULKAN_1_1 = "VkPhysicalDeviceVulkan11Features"
VULKAN_1_2 = "VkPhysicalDeviceVulkan12Features"
SUBGROUP_SIZE = "VkPhysicalDeviceSubgroupSizeControlFeatures"
MATRICES = "VkPhysicalDeviceCooperativeMatrixFeaturesKHR"

EXTENSIONS = {SUBGROUP_SIZE: "VK_EXT_subgroup_size_control", MATRICES: "VK_KHR_cooperative_matrix"}
"""The extensions that define feature structs."""


class Feature(NamedTuple):
    """A boolean field of a Vulkan feature struct."""

    struct: str
    field: str
    words: str = ""
    """Its name in the output of ``wasmetal devices``; empty to leave it out."""
    capability: str = "Shader"
    """The SPIR-V capability that requires it."""


FEATURES = (
    # A last line of defence: an index that a kernel fails to clamp cannot leave the buffer.
    Feature(CORE, "robustBufferAccess", "robust buffer access"),
    Feature(VULKAN_1_1, "storageBuffer16BitAccess", "16-bit storage", "StorageBuffer16BitAccess"),
    Feature(VULKAN_1_1, "uniformAndStorageBuffer16BitAccess", "", "UniformAndStorageBuffer16BitAccess"),
    Feature(VULKAN_1_2, "shaderFloat16", "16-bit floats", "Float16"),
    Feature(VULKAN_1_2, "scalarBlockLayout"),
    Feature(VULKAN_1_2, "bufferDeviceAddress", "device addresses"),
    Feature(VULKAN_1_2, "timelineSemaphore", "timeline semaphores"),
    Feature(SUBGROUP_SIZE, "subgroupSizeControl", "subgroup size control"),
    Feature(SUBGROUP_SIZE, "computeFullSubgroups"),
    Feature(VULKAN_1_2, "vulkanMemoryModel", "", "VulkanMemoryModel"),
    Feature(VULKAN_1_2, "vulkanMemoryModelDeviceScope", "", "VulkanMemoryModelDeviceScope"),
    Feature(MATRICES, "cooperativeMatrix", "", "CooperativeMatrixKHR"),
)

SHUFFLES = "GroupNonUniformShuffle"
_SUBGROUPS = {
    lib.VK_SUBGROUP_FEATURE_BASIC_BIT: "GroupNonUniform",
    lib.VK_SUBGROUP_FEATURE_ARITHMETIC_BIT: "GroupNonUniformArithmetic",
    lib.VK_SUBGROUP_FEATURE_SHUFFLE_BIT: SHUFFLES,
}


def _chain(extensions: Collection[str]) -> tuple[Any, dict[str, Any]]:
    """A ``pNext`` chain of every feature struct, all false: its head, and the struct of fields for each name."""
    structs, chain = {}, NULL
    for name in (VULKAN_1_1, VULKAN_1_2, *EXTENSIONS):
        if EXTENSIONS.get(name) in (None, *extensions):
            structs[name] = chain = struct(name, pNext=chain)
    head = struct(CORE, pNext=chain)
    return head, {**structs, CORE: head.features}


def query(physical_device: Any, extensions: Collection[str]) -> tuple[tuple[Feature, ...], Any]:
    """Those of FEATURES that a device supports, and the chain that enables them, for ``VkDeviceCreateInfo.pNext``."""
    head, structs = _chain(extensions)
    lib.vkGetPhysicalDeviceFeatures2(physical_device, head)
    found = tuple(f for f in FEATURES if f.struct in structs and getattr(structs[f.struct], f.field))
    enabling, structs = _chain(extensions)
    for feature in found:
        setattr(structs[feature.struct], feature.field, True)
    return found, enabling


def extensions_of(features: Collection[Feature]) -> list[str]:
    """The extensions that define some of these features."""
    return list(dict.fromkeys(EXTENSIONS[feature.struct] for feature in features if feature.struct in EXTENSIONS))


def capabilities(features: Collection[Feature], subgroup_operations: int) -> frozenset[str]:
    """The SPIR-V capabilities that kernels may declare on a device with these features and subgroup operations."""
    of_subgroups = {name for bit, name in _SUBGROUPS.items() if subgroup_operations & bit}
    return frozenset({"Shader"} | {feature.capability for feature in features} | of_subgroups)


def multiplies_matrices(instance: Any, physical_device: Any) -> bool:
    """Whether a device with ``cooperativeMatrix`` has those of the kernels: 16 x 16 of float16, summed in float32."""
    name = "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"
    function = ffi.cast(f"PFN_{name}", lib.vkGetInstanceProcAddr(instance, name.encode()))
    count = ffi.new("uint32_t *")
    check(function(physical_device, count, NULL), name)
    stype = lib.VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR
    kinds = ffi.new("VkCooperativeMatrixPropertiesKHR[]", [{"sType": stype}] * count[0])
    check(function(physical_device, count, kinds), name)
    half, single = lib.VK_COMPONENT_TYPE_FLOAT16_KHR, lib.VK_COMPONENT_TYPE_FLOAT32_KHR
    wanted = (16, 16, 16, half, half, single, single, lib.VK_SCOPE_SUBGROUP_KHR)
    fields = ("MSize", "NSize", "KSize", "AType", "BType", "CType", "ResultType", "scope")
    return any(tuple(getattr(kind, field) for field in fields) == wanted for kind in kinds)
