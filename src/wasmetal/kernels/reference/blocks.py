"""GGUF's weight formats, expanded to float32.

A row is a run of blocks in the byte layout of ggml (``ggml-common.h``); ``d`` and ``m`` are float16.
Blocks of 32 weights:
    Q8_0  d, 32 signed bytes q           weight = d q
    Q4_0  d, 16 bytes of two nibbles q   weight = d (q - 8)
    Q4_1  d, m, 16 bytes of two nibbles  weight = d q + m
    Q5_0  d, 32 fifth bits, 16 bytes of two nibbles  weight = d (q - 16)
    MXFP4  a byte e, 16 bytes of two floats q of four bits; weight = 2^(e - 127) q
    Q8_16  d, m, two signed bytes s and two t, one for each 16 weights, 32 signed bytes q; weight = d s q - m t
The low nibbles are weights 0..15 of the block, the high ones 16..31.
Blocks of 256 weights:
    Q6_K  128 bytes of two nibbles, 64 of four bit pairs, a signed byte s for each 16 weights, d; weight = d s (q - 32)
    Q4_K  d, m, 12 bytes of six bits s and six bits t for each 32 weights, 128 bytes of two nibbles q;
          weight = d s q - m t
    Q5_K  the same, with 32 bytes of eight fifth bits before the nibbles
``weights.slang`` says which weights the nibbles and bit pairs belong to.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from wasmetal.kernels.dtypes import DType
from wasmetal.kernels.reference.views import F32, Bytes

Expand = Callable[[Bytes], F32]
"""Bytes of rows, uint8 [rows, bytes of a row], to their weights, float32 [rows, columns]."""


def f32(rows: Bytes) -> F32:
    """F32 rows."""
    return rows.view(np.float32)


def f16(rows: Bytes) -> F32:
    """F16 rows."""
    return rows.view(np.float16).astype(np.float32)


_DOUBLED_FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""Twice the values of a float of four bits: sign, two bits of exponent, one of mantissa."""


def bf16(rows: Bytes) -> F32:
    """BF16 rows: the high halves of float32."""
    return (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def q8_0(rows: Bytes) -> F32:
    """Q8_0 rows."""
    blocks = rows.reshape(len(rows), -1, 34)
    return (_half(blocks, 0) * blocks[..., 2:].view(np.int8)).reshape(len(rows), -1)


def q4_0(rows: Bytes) -> F32:
    """Q4_0 rows."""
    blocks = rows.reshape(len(rows), -1, 18)
    return (_half(blocks, 0) * (_nibbles(blocks[..., 2:]) - np.float32(8))).reshape(len(rows), -1)


def q4_1(rows: Bytes) -> F32:
    """Q4_1 rows."""
    blocks = rows.reshape(len(rows), -1, 20)
    return (_half(blocks, 0) * _nibbles(blocks[..., 4:]) + _half(blocks, 2)).reshape(len(rows), -1)


def q5_0(rows: Bytes) -> F32:
    """Q5_0 rows."""
    blocks = rows.reshape(len(rows), -1, 22)
    fifths = np.unpackbits(blocks[..., 2:6], axis=-1, bitorder="little") << 4
    return (_half(blocks, 0) * ((_nibbles(blocks[..., 6:]) | fifths) - np.float32(16))).reshape(len(rows), -1)


def mxfp4(rows: Bytes) -> F32:
    """MXFP4 rows. Half of each scale times twice each quant, as ggml has it: overflow is then where it is in ggml."""
    blocks = rows.reshape(len(rows), -1, 17)
    scales = np.ldexp(np.float32(1), blocks[..., :1].astype(np.int32) - 128)
    return (scales * _DOUBLED_FP4[_nibbles(blocks[..., 1:])]).reshape(len(rows), -1)


def q8_16(rows: Bytes) -> F32:
    """Q8_16 rows."""
    blocks = rows.reshape(len(rows), -1, 40)
    signed = blocks.view(np.int8)
    scales = _half(blocks, 0) * signed[..., 4:6]
    offsets = _half(blocks, 2) * signed[..., 6:8]
    quants = signed[..., 8:].reshape(*blocks.shape[:2], 2, 16)
    weights: F32 = scales[..., None] * quants - offsets[..., None]
    return weights.reshape(len(rows), -1)


def q4_k(rows: Bytes) -> F32:
    """Q4_K rows."""
    blocks = rows.reshape(len(rows), -1, 144)
    return _scaled(blocks, _nibbles(_split(blocks[..., 16:], 4)))


def q5_k(rows: Bytes) -> F32:
    """Q5_K rows."""
    blocks = rows.reshape(len(rows), -1, 176)
    low = _nibbles(_split(blocks[..., 48:], 4))
    fifths = _bits(blocks[..., 16:48], 1).reshape(low.shape)
    return _scaled(blocks, low | fifths << np.uint8(4))


def q6_k(rows: Bytes) -> F32:
    """Q6_K rows."""
    blocks = rows.reshape(len(rows), -1, 210)
    low = _nibbles(_split(blocks[..., :128], 2))
    high = _bits(_split(blocks[..., 128:192], 2), 2)
    quants = (low | high << 4).reshape(*blocks.shape[:2], 16, 16) - np.float32(32)
    scales = _half(blocks, 208) * blocks[..., 192:208].view(np.int8)
    return (scales[..., None] * quants).reshape(len(rows), -1)


def columns_of(dtype: DType, columns: slice) -> slice:
    """The bytes of a row that hold these columns, which begin and end at multiples of 256 or at the row's end."""
    return slice(dtype.row_bytes(columns.start), dtype.row_bytes(columns.stop))


def _half(blocks: Bytes, at: int) -> F32:
    """The float16 at a byte of each block, as float32 [rows, blocks, 1]."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(quants: Bytes) -> NDArray[np.uint8]:
    return np.concatenate((quants & 15, quants >> 4), axis=-1)


def _scaled(blocks: Bytes, quants: NDArray[np.uint8]) -> F32:
    """Quants [rows, blocks, …] scaled as d s q - m t, by what is at the beginning of blocks of Q4_K and Q5_K."""
    s, t, others = np.moveaxis(_split(blocks[..., 4:16], 3), -2, 0)
    scales = _half(blocks, 0) * np.concatenate((s & 63, others & 15 | s >> 2 & 48), axis=-1)
    offsets = _half(blocks, 2) * np.concatenate((t & 63, others >> 4 | t >> 2 & 48), axis=-1)
    groups = quants.reshape(*blocks.shape[:2], 8, 32)
    weights: F32 = scales[..., None] * groups - offsets[..., None]
    return weights.reshape(len(blocks), -1)


def _split(blocks: Bytes, parts: int) -> Bytes:
    """Bytes [..., n] as [..., parts, n / parts]."""
    return blocks.reshape(*blocks.shape[:-1], parts, -1)


def _bits(quants: Bytes, count: int) -> NDArray[np.uint8]:
    """The lowest ``count`` bits of each byte [..., n], then the next ones, and so on: [..., 8 n / count]."""
    shifts = np.arange(0, 8, count, dtype=np.uint8)[:, None]
    return (quants[..., None, :] >> shifts & np.uint8((1 << count) - 1)).reshape(*quants.shape[:-1], -1)


EXPAND: dict[DType, Expand] = {
    DType.F32: f32,
    DType.F16: f16,
    DType.BF16: bf16,
    DType.Q8_0: q8_0,
    DType.Q4_0: q4_0,
    DType.Q4_1: q4_1,
    DType.Q5_0: q5_0,
    DType.MXFP4: mxfp4,
    DType.Q8_16: q8_16,
    DType.Q4_K: q4_k,
    DType.Q5_K: q5_k,
    DType.Q6_K: q6_k,
}
"""The expansion of each weight format."""
