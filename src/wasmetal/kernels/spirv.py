"""What a compiled SPIR-V module asks of a device."""

from __future__ import annotations

import numpy as np

_HEADER = 5
"""Words before the first instruction."""
_OP_CAPABILITY = 2 << 16 | 17
"""The first word of an OpCapability: two words long, opcode 17."""


def declared_capabilities(module: bytes) -> frozenset[int]:
    """The numbers of the capabilities that a module declares, which its first instructions do."""
    words = np.frombuffer(module, "<u4")
    found = set()
    for at in range(_HEADER, len(words) - 1, 2):
        if words[at] != _OP_CAPABILITY:
            break
        found.add(int(words[at + 1]))
    return frozenset(found)
