"""Kernels that reduce along rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from wasmetal.kernels.reference.batch import valid_rows
from wasmetal.kernels.reference.scratch import BLOCK, steps
from wasmetal.kernels.reference.views import F32, Bytes, array, rows


def rms_norm(p: SimpleNamespace, x: Bytes, weight: Bytes, out: Bytes, batch: Bytes) -> Callable[[], None]:
    """out = x / sqrt(mean(x²) + eps) * weight, for each head of each row."""
    split = (p.rows, p.heads, p.columns)
    source: F32 = np.ndarray(split, np.float32, x, p.x_offset * 4, (p.x_stride * 4, p.columns * 4, 4))
    target: F32 = np.ndarray(split, np.float32, out, p.out_offset * 4, (p.out_stride * 4, p.columns * 4, 4))
    factor = array(weight, p.weight_offset * 4, (p.columns,))
    active = valid_rows(p, batch)
    columns, eps = p.columns, p.eps

    if p.rows == p.heads == 1:
        row, result = source[0, 0], target[0, 0]
        dot, multiply, sqrt = np.dot, np.multiply, math.sqrt

        def run_one() -> None:
            if active():
                mean = float(dot(row, row)) / columns + eps
                # Python raises an error where IEEE 754 has infinity or NaN.
                multiply(row, 1.0 / sqrt(mean) if mean > 0 else math.inf if mean == 0 else math.nan, result)
                multiply(result, factor, result)

        return run_one

    def run_rows() -> None:
        for where in steps(active(), BLOCK // (p.heads * columns)):
            for heads in steps(p.heads, BLOCK // columns):
                some, result = source[where, heads], target[where, heads]
                power = np.einsum("thk,thk->th", some, some)[:, :, None]
                np.multiply(some, 1.0 / np.sqrt(power / np.float32(columns) + np.float32(eps)), result)
                np.multiply(result, factor, result)

    return run_rows


def layer_norm(
    p: SimpleNamespace, x: Bytes, weight: Bytes, bias: Bytes, out: Bytes, batch: Bytes
) -> Callable[[], None]:
    """out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias, for each row."""
    source = rows(x, p.x_offset, p.rows, p.columns, p.x_stride)
    target = rows(out, p.out_offset, p.rows, p.columns, p.out_stride)
    factor, shift = (
        array(each, at * 4, (p.columns,)) for each, at in ((weight, p.weight_offset), (bias, p.bias_offset))
    )
    active = valid_rows(p, batch)
    columns, eps = np.float32(p.columns), np.float32(p.eps)

    def run() -> None:
        for where in steps(active(), BLOCK // p.columns):
            some, result = source[where], target[where]
            np.subtract(some, some.sum(axis=1, keepdims=True) / columns, result)
            power = np.einsum("tk,tk->t", result, result)[:, None]
            np.multiply(result, 1 / np.sqrt(power / columns + eps), result)
            np.multiply(result, factor, result)
            np.add(result, shift, result)

    return run


def softmax(p: SimpleNamespace, x: Bytes, out: Bytes) -> Callable[[], None]:
    """out = exp(x - max) / sum along each row; zeros for a row that is all -inf."""
    source = rows(x, p.x_offset, p.rows, p.columns, p.x_stride)
    target = rows(out, p.out_offset, p.rows, p.columns, p.out_stride)

    def run() -> None:
        for where in steps(p.rows, BLOCK // p.columns):
            some, result = source[where], target[where]
            peak = some.max(axis=1, keepdims=True)
            peak[peak == -np.inf] = 0.0
            np.subtract(some, peak, result)
            np.exp(result, result)
            total = result.sum(axis=1, keepdims=True)
            total[total == 0.0] = 1.0
            np.divide(result, total, result)

    return run


def argmax(p: SimpleNamespace, x: Bytes, out: Bytes) -> Callable[[], None]:
    """Index of each row's largest element, the lowest of equals; NaN is less than everything."""
    source = rows(x, p.x_offset, p.rows, p.columns, p.x_stride)
    target = array(out, p.out_offset * 4, (p.rows,), np.int32)

    def run() -> None:
        for where in steps(p.rows, BLOCK // p.columns):
            peak = np.full(where.stop - where.start, np.nan, np.float32)
            for part in steps(p.columns, BLOCK):
                some = source[where, part]
                highest = np.fmax.reduce(some, axis=1)  # NaN only if all are
                better = (highest > peak) | (np.isnan(peak) & ~np.isnan(highest))
                at = (some == highest[:, None]).argmax(axis=1) + part.start
                target[where] = np.where(better, at, target[where] if part.start else 0)
                peak = np.fmax(peak, highest)

    return run
