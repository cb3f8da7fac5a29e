"""Kernels that reduce along rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from wasmetal.kernels.reference.batch import valid_rows
from wasmetal.kernels.reference.views import Bytes, array, rows


def rms_norm(p: SimpleNamespace, x: Bytes, weight: Bytes, out: Bytes, batch: Bytes) -> Callable[[], None]:
    """out = x / sqrt(mean(x²) + eps) * weight."""
    source = rows(x, p.x_offset, p.rows, p.columns, p.x_stride)
    target = rows(out, p.out_offset, p.rows, p.columns, p.out_stride)
    factor = array(weight, p.weight_offset * 4, (p.columns,))
    active = valid_rows(p, batch)
    columns, eps = p.columns, p.eps

    if p.rows == 1:
        row, result = source[0], target[0]
        dot, multiply, sqrt = np.dot, np.multiply, math.sqrt

        def run_one() -> None:
            if active():
                multiply(row, 1.0 / sqrt(float(dot(row, row)) / columns + eps), result)
                multiply(result, factor, result)

        return run_one

    def run_rows() -> None:
        n = active()
        some = source[:n]
        power = np.einsum("tk,tk->t", some, some)[:, None]
        np.multiply(some, 1.0 / np.sqrt(power / np.float32(columns) + np.float32(eps)), target[:n])
        np.multiply(target[:n], factor, target[:n])

    return run_rows


def softmax(p: SimpleNamespace, x: Bytes, out: Bytes) -> Callable[[], None]:
    """out = exp(x - max) / sum along each row; zeros for a row that is all -inf."""
    source = rows(x, p.x_offset, p.rows, p.columns, p.x_stride)
    target = rows(out, p.out_offset, p.rows, p.columns, p.out_stride)

    def run() -> None:
        peak = source.max(axis=1, keepdims=True)
        peak[peak == -np.inf] = 0.0
        np.subtract(source, peak, target)
        np.exp(target, target)
        total = target.sum(axis=1, keepdims=True)
        total[total == 0.0] = 1.0
        np.divide(target, total, target)

    return run


def argmax(p: SimpleNamespace, x: Bytes, out: Bytes) -> Callable[[], None]:
    """Index of each row's largest element, the lowest of equals; NaN is less than everything."""
    source = rows(x, p.x_offset, p.rows, p.columns, p.x_stride)
    target = array(out, p.out_offset * 4, (p.rows,), np.int32)

    def run() -> None:
        target[:] = source.argmax(axis=1)
        for row in np.flatnonzero(np.isnan(source[np.arange(p.rows), target])):
            numbers = np.flatnonzero(~np.isnan(source[row]))
            target[row] = numbers[source[row, numbers].argmax()] if numbers.size else 0

    return run
