"""Quantizing to Q4_K, after ggml's ``quantize_row_q4_K_ref`` and ``make_qkx2_quants`` (ggml-quants.c), vectorised.

Each 32 weights get a scale and an offset of six bits, in units of two float16 of the block of 256. Of 21 widths of the
steps, the one is taken whose least squares fit has the least error, large weights counting more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

_MOST = 15
"""The largest value of four bits."""
_WIDTHS = -1 + 0.1 * np.arange(21, dtype=np.float32)
"""By how many steps more than _MOST the range of weights is divided."""
_AT_ONCE = 512
"""Blocks whose intermediate results are held at a time, so that they stay in the processor's cache."""


def quantize_q4_k(rows: F32) -> NDArray[np.uint8]:
    """Rows of a multiple of 256 weights as rows of blocks, uint8 [rows, columns / 256 * 144]."""
    blocks = np.ascontiguousarray(rows, np.float32).reshape(-1, 8, 32)
    out = np.empty((len(blocks), 144), np.uint8)
    for begin in range(0, len(blocks), _AT_ONCE):
        out[begin : begin + _AT_ONCE] = _blocks(blocks[begin : begin + _AT_ONCE])
    return out.reshape(len(rows), -1)


def _blocks(x: F32) -> NDArray[np.uint8]:
    """Blocks [n, 8, 32] as bytes [n, 144]."""
    scales, offsets = _fit(x)
    d, scale_bits = _six_bits(scales)
    m, offset_bits = _six_bits(offsets)
    step = (d.astype(np.float32)[:, None] * scale_bits)[..., None]
    shift = (m.astype(np.float32)[:, None] * offset_bits)[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = np.where(step > 0, (x + shift) / step, 0)
    quants = np.clip(np.rint(levels), 0, _MOST).astype(np.uint8).reshape(-1, 4, 2, 32)
    packed = np.empty((len(x), 144), np.uint8)
    packed[:, 0:2] = d[:, None].view(np.uint8)
    packed[:, 2:4] = m[:, None].view(np.uint8)
    packed[:, 4:8] = scale_bits[:, :4] | scale_bits[:, 4:] >> 4 << 6
    packed[:, 8:12] = offset_bits[:, :4] | offset_bits[:, 4:] >> 4 << 6
    packed[:, 12:16] = scale_bits[:, 4:] & 15 | (offset_bits[:, 4:] & 15) << 4
    packed[:, 16:] = (quants[:, :, 0] | quants[:, :, 1] << 4).reshape(len(x), 128)
    return packed


def _six_bits(values: F32) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Values [n, 8], none negative, as a float16 [n] times six bits [n, 8]."""
    most = values.max(axis=1)
    inverse = np.divide(63, most, where=most > 0, out=np.zeros_like(most))
    bits = np.minimum(np.rint(inverse[:, None] * values), 63).astype(np.uint8)
    return (most / np.float32(63)).astype(np.float16), bits


def _fit(x: F32) -> tuple[F32, F32]:
    """The scale and offset, each [n, 8], with which scale q - offset is closest to x [n, 8, 32]."""
    weight = np.sqrt(np.mean(x * x, axis=-1, keepdims=True)) + np.abs(x)
    low, high = np.minimum(x.min(axis=-1), 0), x.max(axis=-1)
    span = high - low
    flat = span <= 0
    above = x - low[..., None]
    inverse = np.float32(1) / np.where(flat, 1, span)
    weighted = weight * x
    sum_w, sum_x, sum_xx = weight.sum(axis=-1), weighted.sum(axis=-1), (weighted * x).sum(axis=-1)
    scale, offset = span / _MOST, -low
    quants = np.rint(above * (_MOST * inverse)[..., None])
    best = ((scale[..., None] * quants - above) ** 2 * weight).sum(axis=-1)
    for width in _WIDTHS:
        quants = np.clip(np.rint(above * ((_MOST + width) * inverse)[..., None]), 0, _MOST)
        levels = weight * quants
        sum_l, sum_ll = levels.sum(axis=-1), np.einsum("...i,...i", levels, quants)
        sum_xl = np.einsum("...i,...i", levels, x)
        determinant = sum_w * sum_ll - sum_l * sum_l
        valid = determinant > 0
        divisor = np.where(valid, determinant, 1)
        some_scale = (sum_w * sum_xl - sum_x * sum_l) / divisor
        some_low = (sum_ll * sum_x - sum_l * sum_xl) / divisor
        positive = some_low > 0
        some_scale = np.where(positive, sum_xl / np.where(sum_ll > 0, sum_ll, 1), some_scale)
        some_low = np.where(positive, 0, some_low)
        # Of the weighted squares of scale q + low - x, expanded into the sums above.
        error = (
            some_scale * some_scale * sum_ll
            + some_low * some_low * sum_w
            + sum_xx
            + 2 * (some_scale * some_low * sum_l - some_scale * sum_xl - some_low * sum_x)
        )
        better = valid & (error < best) & ~flat
        scale, offset, best = (
            np.where(better, some_scale, scale),
            np.where(better, -some_low, offset),
            np.where(better, error, best),
        )
    return np.where(flat, 0, np.maximum(scale, 0)).astype(np.float32), offset.astype(np.float32)
