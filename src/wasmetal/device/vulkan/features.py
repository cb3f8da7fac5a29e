"""What is switched on if a device has it, and the SPIR-V capabilities that each feature lets kernels declare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wasmetal.device.vulkan.api import ffi, lib, struct

SUBGROUP_SIZE_EXTENSION = "VK_EXT_subgroup_size_control"


@dataclass(frozen=True, slots=True)
class Feature:
    """One boolean of one of Vulkan's feature structs."""

    struct: str
    field: str
    words: str
    """As ``wasmetal devices`` says it; empty if it is of no interest there."""
    capabilities: tuple[int, ...] = ()
    """Numbers of the SPIR-V capabilities (specification, section 3.2.30) that need it."""


CORE = "VkPhysicalDeviceFeatures"
VULKAN_1_1 = "VkPhysicalDeviceVulkan11Features"
VULKAN_1_2 = "VkPhysicalDeviceVulkan12Features"
SUBGROUP_SIZE = "VkPhysicalDeviceSubgroupSizeControlFeatures"

FEATURES = (
    # A last line of defence: an index that a kernel failed to clamp stays inside the buffer's own memory.
    Feature(CORE, "robustBufferAccess", "robust buffer access"),
    Feature(CORE, "shaderInt16", "16-bit integers", (22,)),
    Feature(CORE, "shaderInt64", "64-bit integers", (11,)),
    Feature(VULKAN_1_1, "storageBuffer16BitAccess", "16-bit storage", (4433,)),
    Feature(VULKAN_1_1, "uniformAndStorageBuffer16BitAccess", "", (4434,)),
    Feature(VULKAN_1_2, "storageBuffer8BitAccess", "8-bit storage", (4448,)),
    Feature(VULKAN_1_2, "shaderFloat16", "16-bit floats", (9,)),
    Feature(VULKAN_1_2, "shaderInt8", "8-bit integers", (39,)),
    Feature(VULKAN_1_2, "vulkanMemoryModel", "", (5345,)),
    Feature(VULKAN_1_2, "scalarBlockLayout", ""),
    Feature(VULKAN_1_2, "bufferDeviceAddress", "device addresses", (5347,)),
    Feature(VULKAN_1_2, "timelineSemaphore", "timeline semaphores"),
    Feature(SUBGROUP_SIZE, "subgroupSizeControl", "subgroup size control"),
    Feature(SUBGROUP_SIZE, "computeFullSubgroups", ""),
)

_SUBGROUP_CAPABILITIES = (61, 62, 63, 64, 65, 66, 67, 68)
"""GroupNonUniform, …Vote, …Arithmetic, …Ballot, …Shuffle, …ShuffleRelative, …Clustered, …Quad: in the order of the bits
of ``VkSubgroupFeatureFlagBits``."""

_SHADER_CAPABILITY = 1


def _structs(extensions: frozenset[str]) -> dict[str, Any]:
    """One struct per group, empty and chained; the first, ``VkPhysicalDeviceFeatures2``, carries the core ones."""
    names = [VULKAN_1_1, VULKAN_1_2]
    if SUBGROUP_SIZE_EXTENSION in extensions:
        names.append(SUBGROUP_SIZE)
    structs: dict[str, Any] = {}
    following: dict[str, Any] = {}
    for name in names:
        structs[name] = struct(name, **following)
        following = {"pNext": structs[name]}
    structs["VkPhysicalDeviceFeatures2"] = head = struct("VkPhysicalDeviceFeatures2", **following)
    structs[CORE] = head.features
    return structs


def supported(physical_device: Any, extensions: frozenset[str]) -> tuple[Feature, ...]:
    """Those of FEATURES that a device has."""
    structs = _structs(extensions)
    lib.vkGetPhysicalDeviceFeatures2(physical_device, structs["VkPhysicalDeviceFeatures2"])
    return tuple(f for f in FEATURES if f.struct in structs and getattr(structs[f.struct], f.field))


def enabling(features: tuple[Feature, ...], extensions: frozenset[str]) -> Any:
    """The ``VkPhysicalDeviceFeatures2`` chain that switches features on, for ``VkDeviceCreateInfo.pNext``."""
    structs = _structs(extensions)
    for feature in features:
        setattr(structs[feature.struct], feature.field, True)
    return structs["VkPhysicalDeviceFeatures2"]


def capabilities(features: tuple[Feature, ...], subgroup_operations: int) -> frozenset[int]:
    """The SPIR-V capabilities that kernels may declare."""
    granted = {_SHADER_CAPABILITY, *(c for feature in features for c in feature.capabilities)}
    granted.update(c for bit, c in enumerate(_SUBGROUP_CAPABILITIES) if subgroup_operations >> bit & 1)
    return frozenset(granted)


def capability_name(number: int) -> str:
    """A capability in words."""
    words = next((f.words for f in FEATURES if number in f.capabilities and f.words), "")
    return words or f"SPIR-V capability {number}"


def declared_capabilities(spirv: bytes) -> frozenset[int]:
    """The capabilities that a SPIR-V module declares: the OpCapability instructions after its five-word header."""
    words = ffi.from_buffer("uint32_t[]", spirv)
    op_capability = 2 << 16 | 17  # two words long, opcode 17
    found = set()
    at = 5
    while at + 1 < len(words) and words[at] == op_capability:
        found.add(words[at + 1])
        at += 2
    return frozenset(found)
