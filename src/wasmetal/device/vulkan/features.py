"""What is switched on if a device has it, and the SPIR-V capabilities that each feature lets kernels declare."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from wasmetal.device.vulkan.api import NULL, lib, struct

SUBGROUP_SIZE_EXTENSION = "VK_EXT_subgroup_size_control"

CORE = "VkPhysicalDeviceFeatures2"
VULKAN_1_1 = "VkPhysicalDeviceVulkan11Features"
VULKAN_1_2 = "VkPhysicalDeviceVulkan12Features"
SUBGROUP_SIZE = "VkPhysicalDeviceSubgroupSizeControlFeatures"


@dataclass(frozen=True, slots=True)
class Feature:
    """One boolean of one of Vulkan's feature structs."""

    struct: str
    field: str
    words: str = ""
    """As ``wasmetal devices`` says it; empty if it is of no interest there."""
    capability: int | None = None
    """Number of the SPIR-V capability (specification, section 3.2.30) that needs it."""


FEATURES = (
    # A last line of defence: an index that a kernel failed to clamp stays inside the buffer's own memory.
    Feature(CORE, "robustBufferAccess", "robust buffer access"),
    Feature(CORE, "shaderInt16", "16-bit integers", 22),
    Feature(CORE, "shaderInt64", "64-bit integers", 11),
    Feature(VULKAN_1_1, "storageBuffer16BitAccess", "16-bit storage", 4433),
    Feature(VULKAN_1_1, "uniformAndStorageBuffer16BitAccess", capability=4434),
    Feature(VULKAN_1_2, "storageBuffer8BitAccess", "8-bit storage", 4448),
    Feature(VULKAN_1_2, "shaderFloat16", "16-bit floats", 9),
    Feature(VULKAN_1_2, "shaderInt8", "8-bit integers", 39),
    Feature(VULKAN_1_2, "vulkanMemoryModel", capability=5345),
    Feature(VULKAN_1_2, "scalarBlockLayout"),
    Feature(VULKAN_1_2, "bufferDeviceAddress", "device addresses", 5347),
    Feature(VULKAN_1_2, "timelineSemaphore", "timeline semaphores"),
    Feature(SUBGROUP_SIZE, "subgroupSizeControl", "subgroup size control"),
    Feature(SUBGROUP_SIZE, "computeFullSubgroups"),
)

_SHADER = 1
_SUBGROUPS = range(61, 69)
"""GroupNonUniform, …Vote, …Arithmetic, …Ballot, …Shuffle, …ShuffleRelative, …Clustered, …Quad: in the order of the bits
of ``VkSubgroupFeatureFlagBits``."""


def _chain(extensions: Collection[str]) -> tuple[Any, dict[str, Any]]:
    """An empty chain of all feature structs: its head, and what carries the booleans of each struct."""
    structs, chain = {}, NULL
    for name in (VULKAN_1_1, VULKAN_1_2, SUBGROUP_SIZE):
        if name != SUBGROUP_SIZE or SUBGROUP_SIZE_EXTENSION in extensions:
            structs[name] = chain = struct(name, pNext=chain)
    head = struct(CORE, pNext=chain)
    return head, {**structs, CORE: head.features}


def supported(physical_device: Any, extensions: Collection[str]) -> tuple[Feature, ...]:
    """Those of FEATURES that a device has."""
    head, structs = _chain(extensions)
    lib.vkGetPhysicalDeviceFeatures2(physical_device, head)
    return tuple(f for f in FEATURES if f.struct in structs and getattr(structs[f.struct], f.field))


def enabling(features: Collection[Feature], extensions: Collection[str]) -> Any:
    """The chain that switches features on, for ``VkDeviceCreateInfo.pNext``."""
    head, structs = _chain(extensions)
    for feature in features:
        setattr(structs[feature.struct], feature.field, True)
    return head


def capabilities(features: Collection[Feature], subgroup_operations: int) -> frozenset[int]:
    """The SPIR-V capabilities that kernels may declare."""
    of_features = {feature.capability for feature in features if feature.capability is not None}
    of_subgroups = {number for bit, number in enumerate(_SUBGROUPS) if subgroup_operations >> bit & 1}
    return frozenset({_SHADER} | of_features | of_subgroups)


def capability_name(number: int) -> str:
    """A capability in words."""
    words = next((feature.words for feature in FEATURES if feature.capability == number), "")
    return words or f"SPIR-V capability {number}"
