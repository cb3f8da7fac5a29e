"""Mixtures of experts: which experts a row's slots have, the experts' matrices, and the sum of what they make.

A row has S slots, each with an expert of its own. N. Shazeer et al., "Outrageously Large Neural Networks: The
Sparsely-Gated Mixture-of-Experts Layer", 2017.
"""

from __future__ import annotations

from collections.abc import Iterator

from wasmetal.errors import OpError
from wasmetal.kernels.catalog import SUBGROUP_ROWS, THREADS
from wasmetal.kernels.dtypes import WEIGHTS, DType
from wasmetal.ops import preconditions as check
from wasmetal.ops.linear import GEMM_TILE, GEMV_COLUMNS
from wasmetal.ops.recorder import Recorder
from wasmetal.ops.tensor import Tensor
from wasmetal.ops.work import EXPONENTIAL, GROUP, STRETCH, Work

MAX_SLOTS = THREADS
"""Slots of a row, since each thread of a group keeps one (``routing.slang``)."""


def top_k(
    rec: Recorder,
    logits: Tensor,
    ids: Tensor,
    weights: Tensor,
    *,
    normalized: bool = True,
    batch: Tensor | None = None,
) -> None:
    """The S largest logits of each row: their columns, in descending order, and the softmax of the logits there.

    logits f32 [T, E], rows may be strided; ids I32 [T, S] and weights f32 [T, S], with S <= E and S <= 128. Of equal
    logits the first comes first; NaN counts as -inf. The softmax is over the chosen logits if ``normalized``, else over
    all of the row; of nothing but -inf it is zeros. Raises OpError.
    """
    check.dtypes("top_k", (DType.F32,), logits=logits, weights=weights)
    check.dtypes("top_k", (DType.I32,), ids=ids)
    check.rank("top_k", 2, logits=logits, ids=ids)
    rows, columns = logits.shape
    slots = ids.shape[1]
    check.shape("top_k", "ids", ids, (rows, slots))
    check.shape("top_k", "weights", weights, ids.shape)
    most = min(columns, MAX_SLOTS)
    check.require(slots <= most, f"top_k: {slots} of {columns} columns; at most {most} can be chosen")
    check.packed("top_k", ids=ids, weights=weights)
    check.separate("top_k", ids, logits=logits, weights=weights)
    check.separate("top_k", weights, logits=logits)
    batch, offset = check.optional_batch("top_k", batch, rows, ids, stand_in=logits)
    check.separate("top_k", weights, batch=batch)
    row = slots * (GROUP + EXPONENTIAL)
    work = Work(rows, columns, 8 * slots + EXPONENTIAL, row, column_step=columns, aligned=(logits, ids, weights))
    for part in rec.parts("top_k", work):
        rec.dispatch(
            "top_k",
            (*(tensor.rows(part.top, part.bottom) for tensor in (logits, ids, weights)), batch),
            part.rows,
            part.work,
            batch_row=part.top,
            rows=part.rows,
            columns=columns,
            slots=slots,
            logits_stride=logits.row_stride,
            normalized=int(normalized),
            **offset,
        )


def expert_linear(
    rec: Recorder,
    x: Tensor,
    weight: Tensor,
    ids: Tensor,
    out: Tensor,
    *,
    accumulate: bool = False,
    batch: Tensor | None = None,
) -> None:
    """out[t, s] = x[t, s] weight[ids[t, s]]ᵀ, added to what ``out`` holds if ``accumulate``. Raises OpError.

    x f32 [T, S, K], or [T, K] for all slots of a row; weight [E, N, K] of any weight type; ids I32 [T, S], which, as
    unsigned numbers, are clamped to the experts; out f32 [T, S, N]. Rows of x and out may be strided. Accumulates in
    float32. Only the weights of experts that are chosen are read. A single row without ``batch`` takes the GEMV kernel,
    anything else the GEMM kernel, which computes all rows of an expert together.
    """
    check.dtypes("expert_linear", (DType.F32,), x=x, out=out)
    check.dtypes("expert_linear", WEIGHTS, weight=weight)
    check.dtypes("expert_linear", (DType.I32,), ids=ids)
    check.rank("expert_linear", 3, weight=weight, out=out)
    experts, n, k = weight.shape
    rows, slots, _ = out.shape
    shared = len(x.shape) == 2
    check.shape("expert_linear", "x", x, (rows, k) if shared else (rows, slots, k))
    check.shape("expert_linear", "ids", ids, (rows, slots))
    check.shape("expert_linear", "out", out, (rows, slots, n))
    check.packed("expert_linear", weight=weight, ids=ids)
    check.separate("expert_linear", out, x=x, weight=weight, ids=ids)
    table, offset = check.optional_batch("expert_linear", batch, rows, out, stand_in=ids)
    kind = weight.dtype.suffix
    single = rows == 1 and batch is None and k % GEMV_COLUMNS == 0
    # Each slot may have an expert of its own, whose weights are read for it alone.
    cell = slots * (4 * k + STRETCH)
    work = Work(rows, n, cell, GROUP, column_step=GEMM_TILE, aligned=(x, ids, out))
    for begin, end in _bindable_experts(rec, weight):
        some = weight.rows(begin, end)
        for part in rec.parts("expert_linear", work):
            fields = {
                "slots": slots,
                "experts": experts,
                "first_expert": begin,
                "bound_experts": end - begin,
                "n": n,
                "k": k,
                "first_column": part.left,
                "columns": part.columns,
                "x_slot": 0 if shared else k,
                "accumulate": int(accumulate),
            }
            if single:
                runs = -(-part.columns // SUBGROUP_ROWS)
                groups = -(-slots * runs // (THREADS // rec.info.subgroup_size))
                rec.dispatch(f"expert_gemv_{kind}", (some, x, ids, out), groups, part.work, groups=groups, **fields)
            else:
                row_tensors = (tensor.rows(part.top, part.bottom) for tensor in (x, ids, out))
                some_x, some_ids, some_out = row_tensors
                rec.dispatch(
                    f"expert_gemm_{kind}",
                    (some_x, some, some_ids, some_out, table),
                    (end - begin) * -(-part.columns // GEMM_TILE),
                    part.work,
                    batch_row=part.top,
                    rows=part.rows,
                    x_stride=x.row_stride,
                    out_stride=out.row_stride,
                    **fields,
                    **offset,
                )


def weighted_sum(
    rec: Recorder,
    x: Tensor,
    weights: Tensor,
    out: Tensor,
    *,
    accumulate: bool = False,
    batch: Tensor | None = None,
) -> None:
    """out[t] = Σ weights[t, s] x[t, s] over the slots s, added to what ``out`` holds if ``accumulate``.

    x f32 [T, S, K]; weights f32 [T, S]; out f32 [T, K]. Rows of x and out may be strided. Raises OpError.
    """
    check.dtypes("weighted_sum", (DType.F32,), x=x, weights=weights, out=out)
    check.rank("weighted_sum", 3, x=x)
    rows, slots, columns = x.shape
    check.shape("weighted_sum", "weights", weights, (rows, slots))
    check.shape("weighted_sum", "out", out, (rows, columns))
    check.packed("weighted_sum", weights=weights)
    check.separate("weighted_sum", out, x=x, weights=weights)
    batch, offset = check.optional_batch("weighted_sum", batch, rows, out, stand_in=weights)
    work = Work(rows, columns, 8 * slots + 8, column_step=columns, aligned=(x, weights, out))
    for part in rec.parts("weighted_sum", work):
        rec.dispatch(
            "weighted_sum",
            (*(tensor.rows(part.top, part.bottom) for tensor in (x, weights, out)), batch),
            -(-part.rows * columns // THREADS),
            part.work,
            batch_row=part.top,
            rows=part.rows,
            slots=slots,
            columns=columns,
            x_stride=x.row_stride,
            out_stride=out.row_stride,
            accumulate=int(accumulate),
            **offset,
        )


def _bindable_experts(rec: Recorder, weight: Tensor) -> Iterator[tuple[int, int]]:
    """Runs of experts, each of which fits one binding."""
    experts = weight.shape[0]
    if weight.nbytes <= rec.max_tensor_bytes:
        yield 0, experts
        return
    step = weight.row_step()
    count = rec.max_tensor_bytes // weight.dtype.row_bytes(weight.row_stride) // step * step
    if count == 0:
        raise OpError(
            f"expert_linear: {step} experts of {weight.shape[1:]} {weight.dtype.name} weights are more than a binding "
            "can hold"
        )
    for begin in range(0, experts, count):
        yield begin, min(begin + count, experts)
