"""The weight types that no kernel reads: while a file is loaded, each becomes one that holds the same weights exactly.

    IQ4_NL               Q8_0    values of a table of bytes, times a scale
    Q3_K                 Q6_K    three bits are six, less 32; scales of six bits are bytes
    Q5_1, Q2_K, IQ4_XS   Q8_16   bytes, with a scale and an offset for each 16

They take more memory than in the file, but for a rare type that costs less than kernels of its own on every device. The
layouts are those of ggml (``ggml-common.h``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from wasmetal.device.base import Bytes
from wasmetal.kernels.dtypes import DType, row_bytes

_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
"""The weights that the nibbles of IQ4_NL and IQ4_XS stand for, before scaling."""


@dataclass(frozen=True, slots=True)
class Repacked:
    """A type of a file, and what becomes of it."""

    type: GGMLQuantizationType
    block: tuple[int, int]
    """(elements in a block, bytes of a block), in the file."""
    dtype: DType
    """The type that it becomes."""
    blocks: Callable[[Bytes], Bytes]
    """Blocks, uint8 [blocks, bytes of a block], to the bytes of the same weights in ``dtype``, uint8 [blocks, …]."""

    def row_bytes(self, elements: int) -> int:
        """Bytes of a row in the file. Raises OpError if that is not a whole number of blocks."""
        return row_bytes(self.type.name, self.block, elements)

    def __call__(self, data: Bytes) -> Bytes:
        """A tensor's bytes in the file, to its bytes in ``dtype``."""
        return self.blocks(data.reshape(-1, self.block[1])).reshape(-1)


def _q5_1(blocks: Bytes) -> Bytes:
    fifths = np.unpackbits(blocks[:, 4:8], axis=-1, bitorder="little") << np.uint8(4)
    negative = blocks[:, 2:4] ^ np.array([0, 0x80], np.uint8)
    one = np.ones((len(blocks), 2), np.uint8)
    return _q8_16(blocks[:, :2], negative, one, one, _bits(blocks[:, 8:], 16, 4) | fifths)


def _q2_k(blocks: Bytes) -> Bytes:
    s, t = _bits(blocks[:, :16], 16, 4).reshape(-1, 2, 16).swapaxes(0, 1)
    return _q8_16(blocks[:, 80:82], blocks[:, 82:84], s, t, _bits(blocks[:, 16:80], 32, 2))


def _iq4_xs(blocks: Bytes) -> Bytes:
    high = _bits(blocks[:, 2:4], 1, 2)
    low = _bits(blocks[:, 4:8], 1, 4)
    scales = np.repeat((low | high << 4).view(np.int8) - np.int8(32), 2, axis=-1).view(np.uint8)
    zero = np.zeros_like(scales)
    return _q8_16(blocks[:, :2], zero[:, :2], scales, zero, _iq4_values(blocks[:, 8:]))


def _iq4_nl(blocks: Bytes) -> Bytes:
    return np.concatenate((blocks[:, :2], _iq4_values(blocks[:, 2:])), axis=-1)


def _q3_k(blocks: Bytes) -> Bytes:
    third, low = _bits(blocks[:, :32], 32, 1), _bits(blocks[:, 32:96], 32, 2)
    quants = (low + 4 * third + 28).reshape(-1, 2, 2, 2, 32)  # half, quarter of the half: high bit and low bit
    nibbles = quants[:, :, 0] & 15 | quants[:, :, 1] << 4
    pairs = quants.reshape(-1, 2, 4, 32) >> 4 << np.array([0, 2, 4, 6], np.uint8)[:, None]
    scales = _bits(blocks[:, 96:104], 8, 4) | _bits(blocks[:, 104:108], 4, 2) << 4
    parts = nibbles.reshape(-1, 128), np.bitwise_or.reduce(pairs, axis=2).reshape(-1, 64)
    return np.concatenate((*parts, scales - np.uint8(32), blocks[:, 108:110]), axis=-1)


def _q8_16(d: Bytes, m: Bytes, s: Bytes, t: Bytes, quants: Bytes) -> Bytes:
    """The Q8_16 of n blocks: d and m [n, 2] of each, s and t [n, groups] of each 16 weights, quants [n, weights]."""
    out = np.empty((len(d), quants.shape[1] // 32, 40), np.uint8)
    out[..., 0:2], out[..., 2:4] = d[:, None], m[:, None]
    out[..., 4:6], out[..., 6:8] = s.reshape(len(d), -1, 2), t.reshape(len(d), -1, 2)
    out[..., 8:] = quants.reshape(len(d), -1, 32)
    return out.reshape(len(d), -1)


def _bits(packed: Bytes, run: int, count: int) -> NDArray[np.uint8]:
    """Unpack bytes [n, …]: of each ``run`` of them the lowest ``count`` bits, then the next ones, and so on."""
    shifts = np.arange(0, 8, count, dtype=np.uint8)[:, None]
    runs = packed.reshape(len(packed), -1, 1, run)
    return (runs >> shifts & np.uint8((1 << count) - 1)).reshape(len(packed), -1)


def _iq4_values(packed: Bytes) -> Bytes:
    return _IQ4[_bits(packed, 16, 4)].view(np.uint8)


REPACKED: dict[int, Repacked] = {
    repacked.type.value: repacked
    for repacked in (
        Repacked(GGMLQuantizationType.Q5_1, (32, 24), DType.Q8_16, _q5_1),
        Repacked(GGMLQuantizationType.Q2_K, (256, 84), DType.Q8_16, _q2_k),
        Repacked(GGMLQuantizationType.Q3_K, (256, 110), DType.Q6_K, _q3_k),
        Repacked(GGMLQuantizationType.IQ4_NL, (32, 18), DType.Q8_0, _iq4_nl),
        Repacked(GGMLQuantizationType.IQ4_XS, (256, 136), DType.Q8_16, _iq4_xs),
    )
}
"""The types that are repacked, by ggml's numbers."""
