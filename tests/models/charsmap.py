"""SentencePiece's tables of characters that are replaced, for tests."""

from __future__ import annotations

import numpy as np

LEAF, VALUE = 1 << 8, 1 << 31


def charsmap(replaced: dict[str, str]) -> bytes:
    """The table: a double array as Darts has it, a block of 256 units for each node's children, then the texts."""
    texts, starts = b"", {}
    for key, text in replaced.items():
        starts[key.encode()] = len(texts)
        texts += text.encode() + b"\0"
    nodes = sorted({key[:n] for key in starts for n in range(len(key) + 1)})
    blocks = {node: 256 * (i + 1) for i, node in enumerate(nodes)}
    units = np.zeros(256 * (len(nodes) + 1), np.uint32)
    units[0] = blocks[b""] << 10
    for node in nodes[1:]:
        at = blocks[node[:-1]] ^ node[-1]
        units[at] = (at ^ blocks[node]) << 10 | (LEAF if node in starts else 0) | node[-1]
        if node in starts:
            units[blocks[node]] = VALUE | starts[node]
    array = units.tobytes()
    return len(array).to_bytes(4, "little") + array + texts
