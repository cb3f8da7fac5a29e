"""The choice of experts for each row, their matrices, and the sum of what they make."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wasmetal.kernels.dtypes import DType
from wasmetal.kernels.reference.batch import valid_rows
from wasmetal.kernels.reference.blocks import EXPAND, columns_of
from wasmetal.kernels.reference.scratch import BLOCK, steps
from wasmetal.kernels.reference.views import F32, Bytes, array, rows


def top_k(p: SimpleNamespace, logits: Bytes, ids: Bytes, weights: Bytes, batch: Bytes) -> Callable[[], None]:
    """The columns of each row's largest logits, and the softmax of the logits there."""
    source = rows(logits, p.logits_offset, p.rows, p.columns, p.logits_stride)
    chosen = array(ids, p.ids_offset * 4, (p.rows, p.slots), np.int32)
    shares = array(weights, p.weights_offset * 4, (p.rows, p.slots))
    active = valid_rows(p, batch)

    def run() -> None:
        for where in steps(active(), BLOCK // p.columns):
            some = source[where]
            order = np.argsort(-np.where(np.isnan(some), -np.inf, some), axis=1, kind="stable")[:, : p.slots]
            picked = np.take_along_axis(some, order, axis=1)
            peak = np.maximum(np.fmax.reduce(some, axis=1, keepdims=True), np.finfo(np.float32).min)
            total = np.exp((picked if p.normalized else some) - peak).sum(axis=1, keepdims=True)
            total[total == 0.0] = 1.0
            chosen[where], shares[where] = order, np.exp(picked - peak) / total

    return run


def expert_gemv(
    dtype: DType, p: SimpleNamespace, weight: Bytes, x: Bytes, ids: Bytes, out: Bytes
) -> Callable[[], None]:
    """One row: out[s] (+)= weight[ids[s]] x[s], for the experts that are bound."""
    p.rows, p.x_stride, p.out_stride = 1, 0, 0
    return _expert_linear(dtype, p, weight, p.weight_offset * dtype.gemv_unit, x, p.x_offset * 4, ids, out, lambda: 1)


def expert_gemm(
    dtype: DType, p: SimpleNamespace, x: Bytes, weight: Bytes, ids: Bytes, out: Bytes, batch: Bytes
) -> Callable[[], None]:
    """out[t, s] (+)= weight[ids[t, s]] x[t, s], for the experts that are bound."""
    active = valid_rows(p, batch)
    return _expert_linear(dtype, p, weight, p.weight_offset * 4, x, p.x_offset, ids, out, active)


def _expert_linear(
    dtype: DType,
    p: SimpleNamespace,
    weight: Bytes,
    weight_offset: int,
    x: Bytes,
    x_offset: int,
    ids: Bytes,
    out: Bytes,
    active: Callable[[], int],
) -> Callable[[], None]:
    matrices = array(weight, weight_offset, (p.bound_experts, p.n, dtype.row_bytes(p.k)), np.uint8)
    chosen = array(ids, p.ids_offset * 4, (p.rows, p.slots), np.uint32)
    columns = slice(p.first_column, p.first_column + p.columns)

    def slots(data: Bytes, offset: int, width: int, row: int, slot: int) -> F32:
        """Elements [rows, slots, width] that are so far apart."""
        return np.ndarray((p.rows, p.slots, width), np.float32, data, offset * 4, (row * 4, slot * 4, 4))

    source = slots(x, x_offset, p.k, p.x_stride, p.x_slot)
    target = slots(out, p.out_offset, p.n, p.out_stride, p.n)[..., columns]

    def run() -> None:
        bound = np.minimum(chosen[: active()], p.experts - 1).astype(np.int64) - p.first_expert
        for expert in np.unique(bound[(bound >= 0) & (bound < p.bound_experts)]).tolist():
            where = np.nonzero(bound == expert)
            for some in steps(len(where[0]), BLOCK // max(min(p.k, BLOCK), p.columns)):
                which = where[0][some], where[1][some]
                _multiply(dtype, matrices[expert, columns], source, target, which, bool(p.accumulate))

    return run


def _multiply(
    dtype: DType,
    matrix: Bytes,
    source: F32,
    target: F32,
    which: tuple[NDArray[np.intp], NDArray[np.intp]],
    accumulate: bool,
) -> None:
    """target[which] (+)= source[which] matrixᵀ, a chunk of the matrix at a time."""
    expand, k = EXPAND[dtype], source.shape[-1]
    for part in steps(k, BLOCK):
        factors = source[..., part][which]
        for some in steps(len(matrix), BLOCK // min(k, BLOCK)):
            sums = factors @ expand(matrix[some, columns_of(dtype, part)]).T
            outs = target[..., some]
            outs[which] = outs[which] + sums if accumulate or part.start else sums


def weighted_sum(p: SimpleNamespace, x: Bytes, weights: Bytes, out: Bytes, batch: Bytes) -> Callable[[], None]:
    """out[t] (+)= the sum of weights[t, s] x[t, s] over the slots."""
    source: F32 = np.ndarray(
        (p.rows, p.slots, p.columns), np.float32, x, p.x_offset * 4, (p.x_stride * 4, p.columns * 4, 4)
    )
    factors = array(weights, p.weights_offset * 4, (p.rows, p.slots))
    target = rows(out, p.out_offset, p.rows, p.columns, p.out_stride)
    active = valid_rows(p, batch)

    def run() -> None:
        for where in steps(active(), BLOCK // p.columns):
            for part in steps(p.columns, BLOCK):
                sums = np.einsum("ts,tsk->tk", factors[where], source[where, :, part])
                target[where, part] = target[where, part] + sums if p.accumulate else sums

    return run


KERNELS: dict[str, Callable[..., Callable[[], Any]]] = (
    {"top_k": top_k, "weighted_sum": weighted_sum}
    | {f"expert_gemv_{dtype.suffix}": partial(expert_gemv, dtype) for dtype in EXPAND}
    | {f"expert_gemm_{dtype.suffix}": partial(expert_gemm, dtype) for dtype in EXPAND}
)
