"""Random values that have found mistakes before."""

from __future__ import annotations

import struct
from random import Random

PAGE = 65536
EDGES = (
    *(
        0,
        1,
        2,
        3,
        4,
        8,
        16,
        63,
        64,
        65,
        128,
        4095,
        4096,
        PAGE - 4,
        PAGE,
        2 * PAGE,
        8 * PAGE - 1,
        8 * PAGE,
        8 * PAGE + 1,
    ),
    *(2**31 - 1, 2**31, 2**32 - 16, 2**32 - 1, 2**32, 2**33, 2**62, 2**63 - 1, 2**63, 2**64 - 16, 2**64 - 1),
)
"""Numbers at which something ends: a page, a memory, a type."""


def number(random: Random) -> int:
    """From 0 to 2^64 - 1, often an edge or near one."""
    r = random.random()
    if r < 0.5:
        return random.choice(EDGES)
    if r < 0.8:
        return min(max(0, random.choice(EDGES) + random.randint(-32, 32)), 2**64 - 1)
    return random.getrandbits(random.choice([4, 8, 16, 20, 32, 48, 64]))


def mutated(random: Random, data: bytes, end: int | None = None) -> bytes:
    """A copy with a few changes, in its first ``end`` bytes: bits, numbers, pieces cut out, doubled or moved."""
    out = bytearray(data)
    for _ in range(random.choice([1, 1, 1, 2, 3, 8])):
        end = min(len(out), end or len(out))
        if end < 16:
            break
        at, r = random.randrange(end - 8), random.random()
        if r < 0.3:
            out[at] ^= 1 << random.randrange(8)
        elif r < 0.4:
            out[at] = random.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif r < 0.5:
            struct.pack_into("<Q", out, at, random.choice([number(random), len(out), random.getrandbits(20)]))
        elif r < 0.6:
            struct.pack_into("<I", out, at, random.choice([number(random) % 2**32, *range(14)]))
        elif r < 0.7:
            out[at : at + random.randint(1, 64)] = random.randbytes(random.randint(0, 64))
        elif r < 0.78:
            del out[random.randrange(len(out)) :]
        elif r < 0.86:
            begin = random.randrange(end)
            out[at:at] = out[begin : begin + random.randint(1, 400)]
        elif r < 0.93:
            begin, size = random.randrange(end), random.randint(1, 200)
            out[at : at + size] = out[begin : begin + size]
        else:
            out += bytes(random.randint(1, 5000))
    return bytes(out)


CHARACTERS = (
    *"abĠ▁ \n<>0xF|é中😀\u0301\0\u00ad~\u202e{}%",
    "<0x41>",
    "<0xZZ>",
    "<unk>",
    "▁▁",
    "ab",
    "<|a|>",
    "  ",
    "Ċ",
    "<|im_end|>",
)


def text(random: Random, most: int = 40) -> str:
    """A short string of characters that tokenizers and templates treat specially."""
    return "".join(random.choice(CHARACTERS) for _ in range(random.randint(0, most)))
