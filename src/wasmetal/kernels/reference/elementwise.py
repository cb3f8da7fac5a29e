"""Elementwise kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np

from wasmetal.kernels.reference.batch import valid_rows
from wasmetal.kernels.reference.scratch import BLOCK, blockwise
from wasmetal.kernels.reference.views import F32, Bytes, rows

_TWICE = 2 * math.sqrt(2 / math.pi)
_SLOPE = np.float32(0.3275911 / math.sqrt(2))
_ERFC = np.array([0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429], np.float32)
"""erfc(x) within 1.5e-7, for x >= 0, is the polynomial t (_ERFC[0] + t (_ERFC[1] + …)) e^(-x²), with t = 1 / (1 +
0.3275911 x): M. Abramowitz and I. Stegun, "Handbook of Mathematical Functions", 1964, 7.1.26."""


def add(p: SimpleNamespace, a: Bytes, b: Bytes, out: Bytes) -> Callable[[], object]:
    """out = a + b."""
    left = rows(a, p.a_offset, p.rows, p.columns, p.a_stride)
    right = rows(b, p.b_offset, p.rows, p.columns, p.b_stride)
    return _whole(np.add, left, right, rows(out, p.out_offset, p.rows, p.columns, p.out_stride))


def scale(p: SimpleNamespace, x: Bytes, out: Bytes) -> Callable[[], object]:
    """out = x * factor."""
    source = rows(x, p.x_offset, p.rows, p.columns, p.x_stride)
    factor = np.float32(p.factor)
    return _whole(
        lambda some, result: np.multiply(some, factor, result),
        source,
        rows(out, p.out_offset, p.rows, p.columns, p.out_stride),
    )


def copy(p: SimpleNamespace, x: Bytes, out: Bytes) -> Callable[[], object]:
    """out = x, in vectors of 16 bytes."""
    source, target = (
        data[16 * begin : 16 * (begin + p.vectors)] for data, begin in ((x, p.x_offset), (out, p.out_offset))
    )
    return partial(np.copyto, target, source)


def silu_mul(p: SimpleNamespace, gate: Bytes, up: Bytes, out: Bytes, batch: Bytes) -> Callable[[], None]:
    """out = gate / (1 + exp(-gate)) * up."""
    return _gated(silu, p, gate, up, out, batch)


def gelu_mul(p: SimpleNamespace, gate: Bytes, up: Bytes, out: Bytes, batch: Bytes) -> Callable[[], None]:
    """out = gate * (1 + tanh(sqrt(2 / pi) (gate + 0.044715 gate^3))) / 2 * up."""
    return _gated(gelu_tanh, p, gate, up, out, batch)


def swiglu_oai(p: SimpleNamespace, gate: Bytes, up: Bytes, out: Bytes, batch: Bytes) -> Callable[[], None]:
    """out = g / (1 + exp(-1.702 g)) * (1 + up limited to -7 .. 7), with g the gate limited to 7."""
    return _gated(_sigmoid_linear, p, gate, up, out, batch, lambda u: np.clip(u, -7.0, 7.0) + np.float32(1))


def _sigmoid_linear(g: F32, scratch: F32) -> None:
    """scratch = g / (1 + exp(-1.702 g)) of what is at most 7."""
    limited = np.minimum(g, np.float32(7))
    np.multiply(limited, np.float32(-1.702), scratch)
    np.exp(scratch, scratch)
    np.add(scratch, 1.0, scratch)
    np.divide(limited, scratch, scratch)


def gelu(p: SimpleNamespace, x: Bytes, out: Bytes, batch: Bytes) -> Callable[[], None]:
    """out = x * (1 + erf(x / sqrt(2))) / 2, which is max(x, 0) - |x| erfc(|x| / sqrt(2)) / 2."""
    source = rows(x, p.x_offset, p.rows, p.columns, p.x_stride)
    target = rows(out, p.out_offset, p.rows, p.columns, p.out_stride)
    active = valid_rows(p, batch)

    def run(some: F32, result: F32) -> None:
        size = np.abs(some)
        t = 1 / (1 + _SLOPE * size)
        series = np.full_like(t, _ERFC[-1])
        for coefficient in _ERFC[-2::-1]:
            np.multiply(series, t, series)
            np.add(series, coefficient, series)
        np.multiply(series, t, series)
        np.multiply(series, np.exp(np.float32(-0.5) * size * size), series)
        np.subtract(np.maximum(some, 0), np.float32(0.5) * size * series, result)

    return lambda: blockwise(run, active(), source, target)


def silu(g: F32, scratch: F32) -> None:
    """scratch = g / (1 + exp(-g))."""
    np.negative(g, scratch)
    np.exp(scratch, scratch)
    np.add(scratch, 1.0, scratch)
    np.divide(g, scratch, scratch)


def gelu_tanh(g: F32, scratch: F32) -> None:
    """scratch = g / (1 + exp(-2x)), which is g (1 + tanh(x)) / 2, for x = sqrt(2 / pi) (g + 0.044715 g^3)."""
    np.multiply(g, g, scratch)
    np.multiply(scratch, np.float32(-0.044715 * _TWICE), scratch)
    np.subtract(scratch, np.float32(_TWICE), scratch)
    np.multiply(scratch, g, scratch)
    np.exp(scratch, scratch)
    np.add(scratch, 1.0, scratch)
    np.divide(g, scratch, scratch)


def _gated(
    activate: Callable[[F32, F32], None],
    p: SimpleNamespace,
    gate: Bytes,
    up: Bytes,
    out: Bytes,
    batch: Bytes,
    factor: Callable[[F32], F32] = lambda up: up,
) -> Callable[[], None]:
    """out = activated gate * the factor that is made of up."""
    gates = rows(gate, p.gate_offset, p.rows, p.columns, p.gate_stride)
    ups = rows(up, p.up_offset, p.rows, p.columns, p.up_stride)
    outs = rows(out, p.out_offset, p.rows, p.columns, p.out_stride)
    active = valid_rows(p, batch)

    def run(g: F32, u: F32, o: F32) -> None:
        scratch = np.empty_like(g)
        activate(g, scratch)
        np.multiply(scratch, factor(u), o)

    if p.rows == 1 and p.columns <= BLOCK:
        one = partial(run, gates[0], ups[0], outs[0])

        def run_one() -> None:
            if active():
                one()

        return run_one

    return lambda: blockwise(run, active(), gates, ups, outs)


def _whole(compute: Callable[..., object], *matrices: F32) -> Callable[[], object]:
    """Compute all rows: at once if they are few."""
    if matrices[0].size <= BLOCK:
        return partial(compute, *matrices)
    return partial(blockwise, compute, len(matrices[0]), *matrices)
