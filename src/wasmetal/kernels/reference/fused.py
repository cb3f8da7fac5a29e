"""Kernels that do what several others do, for one row."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np

from wasmetal.kernels.catalog import ACTIVATIONS, NO_BIAS
from wasmetal.kernels.dtypes import DType
from wasmetal.kernels.reference.blocks import EXPAND
from wasmetal.kernels.reference.elementwise import gelu_tanh, silu
from wasmetal.kernels.reference.linear import expander
from wasmetal.kernels.reference.views import F32, Bytes, array


def norm_gemv(
    dtype: DType, p: SimpleNamespace, weight: Bytes, x: Bytes, norm: Bytes, bias: Bytes, out: Bytes
) -> Callable[[], None]:
    """out = weight (x / sqrt(mean(x²) + eps) * norm) + bias."""
    normed = _normed(p, x, norm)
    product = _product(dtype, weight, p.weight_offset * dtype.gemv_unit, p)
    added = 0.0 if p.bias_offset == NO_BIAS else array(bias, p.bias_offset * 4, (p.n,))
    result = array(out, p.out_offset * 4, (p.n,))

    def run() -> None:
        np.add(product(normed()), added, result)

    return run


def gated_gemv(
    dtype: DType, p: SimpleNamespace, gate: Bytes, up: Bytes, x: Bytes, norm: Bytes, out: Bytes
) -> Callable[[], None]:
    """out = activation(gate n) * (up n), where n is x, normed as above."""
    normed = _normed(p, x, norm)
    first = _product(dtype, gate, p.gate_offset * dtype.gemv_unit, p)
    second = _product(dtype, up, p.up_offset * dtype.gemv_unit, p)
    result = array(out, p.out_offset * 4, (p.n,))
    activate = {"silu": silu, "gelu": gelu_tanh}[ACTIVATIONS[p.activation]]

    def run() -> None:
        vector = normed()
        with np.errstate(over="ignore"):
            activate(first(vector), result)
        np.multiply(result, second(vector), result)

    return run


def _normed(p: SimpleNamespace, x: Bytes, norm: Bytes) -> Callable[[], F32]:
    """x after RMS norm."""
    source, factors = array(x, p.x_offset * 16, (p.k,)), array(norm, p.norm_offset * 16, (p.k,))
    columns, eps = np.float32(p.k), np.float32(p.eps)
    return lambda: source * factors / np.sqrt(np.dot(source, source) / columns + eps)


def _product(dtype: DType, weight: Bytes, offset: int, p: SimpleNamespace) -> Callable[[F32], F32]:
    """The product of a matrix [n, k] with a vector."""
    chunks = expander(dtype, weight, offset, p.n, p.k)

    def product(vector: F32) -> F32:
        sums = np.zeros(p.n, np.float32)
        for some, part, chunk in chunks():
            sums[some] += chunk @ vector[part]
        return sums

    return product


KERNELS = {f"norm_gemv_{dtype.suffix}": partial(norm_gemv, dtype) for dtype in EXPAND} | {
    f"gated_gemv_{dtype.suffix}": partial(gated_gemv, dtype) for dtype in EXPAND
}
