"""The largest logits of each row: those of each part of it, and then those of all parts."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wasmetal.kernels.reference.scratch import BLOCK, steps
from wasmetal.kernels.reference.views import F32, Bytes, array, rows

RUN = 32
"""Consecutive columns of a part, whose next run is after one of every other part."""
_FLOATS = np.finfo(np.float32)
_MINUS_INFINITY = 0x007FFFFF
_FARTHEST = np.float32(-1e37)
_SIGN = 0x80000000

Keys = NDArray[np.uint64]
"""A logit's bits, changed so that they are ordered as unsigned numbers, and ~column; 0 is no logit's."""


def top_logits_part(p: SimpleNamespace, logits: Bytes, scratch: Bytes) -> Callable[[], None]:
    """The k largest of each part of each row, and the sum of its exponentials."""
    source = rows(logits, p.logits_offset, p.rows, p.columns, p.logits_stride)
    places, totals = _views(p, scratch)

    def run() -> None:
        for row in range(p.rows):
            for part in range(p.parts):
                best = np.zeros(p.k, np.uint64)
                peak, total = _FLOATS.min, np.float32(0)
                runs = -(-max(0, -(-p.columns // RUN) - part) // p.parts)
                for some in steps(runs * RUN, BLOCK):
                    i = np.arange(some.start, some.stop)
                    columns = (i // RUN * p.parts + part) * RUN + i % RUN
                    columns = columns[columns < p.columns]
                    values = source[row, columns]
                    best = _largest(np.concatenate([best, _keys(values, columns)]), p.k)
                    higher = np.fmax(peak, _finite(np.fmax.reduce(values, initial=_FLOATS.min)))
                    total = total * _power(peak, higher, p) + _sum(values, higher, p)
                    peak = higher
                places[row, :, part] = np.stack([best >> 32, best & 0xFFFFFFFF], axis=-1)
                totals[row, part] = peak, total

    return run


def top_logits_merge(
    p: SimpleNamespace, scratch: Bytes, ids: Bytes, values: Bytes, totals: Bytes
) -> Callable[[], None]:
    """The k largest of all parts, the largest of all, and the sum of the exponentials."""
    places, of_parts = _views(p, scratch)
    chosen = array(ids, p.ids_offset * 4, (p.rows, p.k), np.uint32)
    logits = array(values, p.values_offset * 4, (p.rows, p.k), np.uint32)
    results = array(totals, p.totals_offset * 4, (p.rows, 2))

    def run() -> None:
        for row in range(p.rows):
            words = places[row].reshape(-1, 2).astype(np.uint64)
            best = _largest(words[:, 0] << np.uint64(32) | words[:, 1], p.k)
            chosen[row] = ~best.astype(np.uint32)
            logits[row] = _bits(best)
            top = logits[row, :1].view(np.float32)[0]
            peaks, sums = of_parts[row].T
            results[row] = top, (sums * _power(peaks, _finite(top), p)).sum()

    return run


def _views(p: SimpleNamespace, scratch: Bytes) -> tuple[NDArray[np.uint32], F32]:
    """(the places [rows, k, parts, 2] of keys in scratch memory, the largest and the sum [rows, parts, 2])."""
    words = array(scratch, p.scratch_offset * 8, (p.rows, p.k + 1, p.parts, 2), np.uint32)
    return words[:, : p.k], words.view(np.float32)[:, p.k]


def _keys(values: F32, columns: NDArray[Any]) -> Keys:
    bits = np.where(np.isnan(values), -np.inf, values + np.float32(0)).astype(np.float32).view(np.uint32)
    ordered = np.where(bits & _SIGN, ~bits, bits | np.uint32(_SIGN))
    return ordered.astype(np.uint64) << np.uint64(32) | ~columns.astype(np.uint32)


def _bits(keys: Keys) -> NDArray[np.uint32]:
    """The bits of the keys' logits; of -inf for no logit."""
    words = np.maximum((keys >> np.uint64(32)).astype(np.uint32), np.uint32(_MINUS_INFINITY))
    return np.where(words & _SIGN, words & np.uint32(~_SIGN & 0xFFFFFFFF), ~words)


def _largest(keys: Keys, k: int) -> Keys:
    return np.sort(keys)[::-1][:k]


def _finite(values: Any) -> Any:
    """Infinities become the largest floats, so that no difference is NaN."""
    return np.clip(values, _FLOATS.min, _FLOATS.max)


def _power(values: Any, peak: Any, p: SimpleNamespace) -> Any:
    return np.exp(np.maximum(values - peak, _FARTHEST) * np.float32(p.inverse_temperature))


def _sum(values: F32, peak: Any, p: SimpleNamespace) -> Any:
    return _power(_finite(values), peak, p).sum(where=values > -np.inf)


KERNELS: dict[str, Callable[..., Callable[[], object]]] = {
    "top_logits_part": top_logits_part,
    "top_logits_merge": top_logits_merge,
}
