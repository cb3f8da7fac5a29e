"""What a compiled SPIR-V module asks of a device."""

from __future__ import annotations

import numpy as np

CAPABILITIES = {
    1: "Shader",
    9: "Float16",
    61: "GroupNonUniform",
    63: "GroupNonUniformArithmetic",
    65: "GroupNonUniformShuffle",
    4433: "StorageBuffer16BitAccess",
    4434: "UniformAndStorageBuffer16BitAccess",
    5345: "VulkanMemoryModel",
    5346: "VulkanMemoryModelDeviceScope",
    6022: "CooperativeMatrixKHR",
}
"""Names of the capabilities that kernels make use of, by number (specification, section 3.2.30)."""

_HEADER = 5
"""Words before the first instruction."""
_OP_CAPABILITY = 2 << 16 | 17
"""The first word of an OpCapability: two words long, opcode 17."""


def declared_capabilities(module: bytes) -> frozenset[str]:
    """The capabilities that a module declares, by name (of others the number), as its first instructions do."""
    words = np.frombuffer(module, "<u4")
    found = set()
    for at in range(_HEADER, len(words) - 1, 2):
        if words[at] != _OP_CAPABILITY:
            break
        number = int(words[at + 1])
        found.add(CAPABILITIES.get(number, f"capability {number}"))
    return frozenset(found)
