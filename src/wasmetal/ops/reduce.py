"""Operations that reduce along rows, with one group of threads per row."""

from __future__ import annotations

from wasmetal.kernels.dtypes import DType
from wasmetal.ops import preconditions as check
from wasmetal.ops.recorder import Recorder
from wasmetal.ops.tensor import Tensor
from wasmetal.ops.work import EXPONENTIAL, GROUP, Work


def rms_norm(rec: Recorder, x: Tensor, weight: Tensor, out: Tensor, eps: float, *, batch: Tensor | None = None) -> None:
    """out = x / sqrt(mean(x²) + eps) * weight along each row; f32, x and out [T, K], weight [K]. Raises OpError.

    Or along each head of each row: x and out [T, heads, K], rows may be strided. ``out`` may be ``x``. After B. Zhang
    and R. Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    check.dtypes("rms_norm", (DType.F32,), x=x, weight=weight, out=out)
    check.require(len(x.shape) in (2, 3), f"rms_norm: x has shape {x.shape}; it must have 2 or 3 dimensions")
    rows, columns = x.shape[0], x.shape[-1]
    heads = x.shape[1] if len(x.shape) == 3 else 1
    check.shape("rms_norm", "weight", weight, (columns,))
    check.shape("rms_norm", "out", out, x.shape)
    check.packed("rms_norm", weight=weight)
    check.separate_or_same("rms_norm", out, x=x)
    check.separate("rms_norm", out, weight=weight)
    batch, offset = check.optional_batch("rms_norm", batch, rows, out, stand_in=weight)
    width = heads * columns
    for part in rec.parts("rms_norm", Work(rows, width, 32, heads * GROUP, column_step=width, aligned=(x, out))):
        rec.dispatch(
            "rms_norm",
            (x.rows(part.top, part.bottom), weight, out.rows(part.top, part.bottom), batch),
            part.rows * heads,
            part.work,
            batch_row=part.top,
            rows=part.rows,
            columns=columns,
            x_stride=x.row_stride,
            out_stride=out.row_stride,
            eps=eps,
            heads=heads,
            **offset,
        )


def layer_norm(
    rec: Recorder, x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, eps: float, *, batch: Tensor | None = None
) -> None:
    """out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias along each row; f32, x and out [T, K], rows may be
    strided, weight and bias [K]. ``out`` may be ``x``. Raises OpError.

    After J. Ba et al., "Layer Normalization", 2016.
    """
    check.dtypes("layer_norm", (DType.F32,), x=x, weight=weight, bias=bias, out=out)
    check.rank("layer_norm", 2, x=x)
    rows, columns = x.shape
    check.shape("layer_norm", "weight", weight, (columns,))
    check.shape("layer_norm", "bias", bias, (columns,))
    check.shape("layer_norm", "out", out, x.shape)
    check.packed("layer_norm", weight=weight, bias=bias)
    check.separate_or_same("layer_norm", out, x=x)
    check.separate("layer_norm", out, weight=weight, bias=bias)
    batch, offset = check.optional_batch("layer_norm", batch, rows, out, stand_in=weight)
    for part in rec.parts("layer_norm", Work(rows, columns, 40, GROUP, column_step=columns, aligned=(x, out))):
        rec.dispatch(
            "layer_norm",
            (x.rows(part.top, part.bottom), weight, bias, out.rows(part.top, part.bottom), batch),
            part.rows,
            part.work,
            batch_row=part.top,
            rows=part.rows,
            columns=columns,
            x_stride=x.row_stride,
            out_stride=out.row_stride,
            eps=eps,
            **offset,
        )


def softmax(rec: Recorder, x: Tensor, out: Tensor) -> None:
    """out = exp(x - max) / sum over the last dimension; f32 of one shape. A row that is all -inf gives zeros.

    ``out`` may be ``x``. Raises OpError.
    """
    check.dtypes("softmax", (DType.F32,), x=x, out=out)
    check.shape("softmax", "out", out, x.shape)
    check.separate_or_same("softmax", out, x=x)
    x, out = check.matrix("softmax", "x", x), check.matrix("softmax", "out", out)
    rows, columns = x.shape
    for part in rec.parts(
        "softmax", Work(rows, columns, 20 + 2 * EXPONENTIAL, GROUP, column_step=columns, aligned=(x, out))
    ):
        rec.dispatch(
            "softmax",
            (x.part(part), out.part(part)),
            part.rows,
            part.work,
            rows=part.rows,
            columns=columns,
            x_stride=x.row_stride,
            out_stride=out.row_stride,
        )


def argmax(rec: Recorder, x: Tensor, out: Tensor) -> None:
    """Out = index of the largest element over the last dimension, the lowest of equals; x f32, out I32 of the rest.

    NaN is less than everything; a row that is all NaN gives 0. A vector x gives out [1]. Raises OpError.
    """
    check.dtypes("argmax", (DType.F32,), x=x)
    check.dtypes("argmax", (DType.I32,), out=out)
    check.shape("argmax", "out", out, x.shape[:-1] or (1,))
    check.packed("argmax", out=out)
    check.separate("argmax", out, x=x)
    x = check.matrix("argmax", "x", x)
    rows, columns = x.shape
    out = out.reshape(rows, 1)
    for part in rec.parts("argmax", Work(rows, columns, 8, GROUP, column_step=columns, aligned=(x, out))):
        rec.dispatch(
            "argmax",
            (x.part(part), out.rows(part.top, part.bottom)),
            part.rows,
            part.work,
            rows=part.rows,
            columns=columns,
            x_stride=x.row_stride,
        )
